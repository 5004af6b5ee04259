//! Amounts of resources (`250m`, `1.5Gi`, `1e3`), exact, with the canonical form of `k8s.io/apimachinery/pkg/api/resource`.

use std::{cmp::Ordering, fmt, ops};

const NANO: i128 = 1_000_000_000;
/// Sums stay far inside `i128` when no single amount is larger than this (in nano units).
const LIMIT_NANO: i128 = i128::MAX / 1024;

/// How an amount is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// `12M` is 12·10⁶.
    #[default]
    DecimalSi,
    /// `12Mi` is 12·2²⁰.
    BinarySi,
    /// `12e6`.
    DecimalExponent,
}

/// Why a text is not a quantity, in Kubernetes' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// An exact amount with a resolution of one nano unit; finer parts are rounded away from zero when parsed, amounts beyond
/// about 1.6·10²⁶ are capped.
///
/// Equality and order are those of the amounts: `1` equals `1000m`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

/// The parts of a quantity's text, not yet interpreted.
struct Parts<'a> {
    negative: bool,
    /// Without leading zeros, but never empty.
    integer: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Result<Self, QuantityError> {
        let negative = text.starts_with('-');
        let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
        let (integer, rest) = split_digits(unsigned);
        let (fraction, suffix) = rest.strip_prefix('.').map_or(("", rest), split_digits);
        if integer.is_empty() && fraction.is_empty() {
            return Err(QuantityError::Format);
        }
        let after_letters = suffix.trim_start_matches(|letter| "eEinumkKMGTP".contains(letter));
        let digits = after_letters.strip_prefix(['-', '+']).unwrap_or(after_letters);
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(QuantityError::Format);
        }
        let stripped = integer.trim_start_matches('0');
        Ok(Self { negative, integer: if stripped.is_empty() { "0" } else { stripped }, fraction, suffix })
    }

    /// The base's exponent (of 2 for [`Format::BinarySi`], else of 10).
    fn exponent(&self) -> Result<(Format, i32), QuantityError> {
        let exponent = match self.suffix {
            "n" => -9,
            "u" => -6,
            "m" => -3,
            "" => 0,
            "k" => 3,
            "M" => 6,
            "G" => 9,
            "T" => 12,
            "P" => 15,
            "E" => 18,
            "Ki" => return Ok((Format::BinarySi, 10)),
            "Mi" => return Ok((Format::BinarySi, 20)),
            "Gi" => return Ok((Format::BinarySi, 30)),
            "Ti" => return Ok((Format::BinarySi, 40)),
            "Pi" => return Ok((Format::BinarySi, 50)),
            "Ei" => return Ok((Format::BinarySi, 60)),
            scientific => {
                let digits = scientific.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
                let exponent: i64 = digits.parse().map_err(|_| QuantityError::Suffix)?;
                return Ok((Format::DecimalExponent, exponent.clamp(-1000, 1000) as i32));
            }
        };
        Ok((Format::DecimalSi, exponent))
    }
}

/// `integer.fraction · 10^exponent` rounded up to a whole number, capped at [`LIMIT_NANO`].
fn scaled(integer: &str, fraction: &str, exponent: i32) -> i128 {
    // How many digits stand before the point once it is moved.
    let places = integer.len() as i64 + i64::from(exponent);
    let whole = usize::try_from(places).unwrap_or(0);
    let digits = || integer.bytes().chain(fraction.bytes());
    if digits().all(|digit| digit == b'0') {
        return 0;
    }
    let mut value: i128 = 0;
    for digit in digits().chain(std::iter::repeat(b'0')).take(whole) {
        value = value * 10 + i128::from(digit - b'0');
        if value > LIMIT_NANO {
            return LIMIT_NANO;
        }
    }
    let remainder = digits().skip(whole).any(|digit| digit != b'0');
    value + i128::from(remainder)
}

/// The nano units of a number with a binary suffix, rounded up, capped at the largest `int64` as Kubernetes does.
fn scaled_binary(integer: &str, fraction: &str, exponent: i32) -> i128 {
    let cap = i128::from(i64::MAX) * NANO;
    let whole = scaled(integer, "", 0);
    if whole > i128::from(i64::MAX) >> exponent {
        return cap;
    }
    // 18 digits and a remainder: 2^60 · 2^60 fits.
    let kept = &fraction[..fraction.len().min(18)];
    let lost = fraction[kept.len()..].bytes().any(|digit| digit != b'0');
    let parts = (scaled("0", kept, kept.len() as i32)) << exponent;
    let places = kept.len() as u32;
    let fraction_nano = if places <= 9 {
        parts * 10_i128.pow(9 - places)
    } else {
        let divisor = 10_i128.pow(places - 9);
        (parts + divisor - 1) / divisor
    };
    ((whole << exponent) * NANO + fraction_nano + i128::from(lost)).min(cap)
}

impl Quantity {
    pub const ZERO: Self = Self { nano: 0, format: Format::DecimalSi };

    /// Parses a quantity as it stands in a manifest.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let parts = Parts::of(text)?;
        let (mut format, exponent) = parts.exponent()?;
        let magnitude = match format {
            Format::BinarySi => scaled_binary(parts.integer, parts.fraction, exponent),
            Format::DecimalSi | Format::DecimalExponent => scaled(parts.integer, parts.fraction, exponent + 9),
        };
        if format == Format::BinarySi && magnitude > 0 && magnitude < NANO {
            format = Format::DecimalSi;
        }
        Ok(Self { nano: if parts.negative { -magnitude } else { magnitude }, format })
    }

    /// The text that Kubernetes stores for `text`. It is `Quantity::parse(text)?.to_string()`, but texts that Kubernetes takes
    /// for canonical as they are (`1.125`, `1e3`) stay so.
    pub fn canonical_text(text: &str) -> Result<String, QuantityError> {
        let quantity = Self::parse(text)?;
        let parts = Parts::of(text)?;
        let (format, exponent) = parts.exponent()?;
        let digits = format!("{}{}", parts.integer, parts.fraction);
        let scale = exponent - parts.fraction.len() as i32;
        let keep = match format {
            Format::BinarySi => {
                let odd = digits.parse::<u64>().is_ok_and(|value| value & 7 != 0);
                let precise = 15 - digits.len() as i32 - exponent * 3 / 10 > 0;
                parts.fraction.is_empty() && odd && precise
            }
            Format::DecimalSi | Format::DecimalExponent => {
                digits.len() <= 18 && scale >= -9 && scale % 3 == 0 && !digits.ends_with("000") && !digits.starts_with('0')
            }
        };
        Ok(if keep { text.to_owned() } else { quantity.to_string() })
    }

    pub fn from_units(units: i64, format: Format) -> Self {
        Self { nano: i128::from(units) * NANO, format }
    }

    pub fn from_millis(millis: i64, format: Format) -> Self {
        Self { nano: i128::from(millis) * (NANO / 1000), format }
    }

    pub fn format(self) -> Format {
        self.format
    }

    pub fn is_zero(self) -> bool {
        self.nano == 0
    }

    /// -1, 0 or 1.
    pub fn sign(self) -> i8 {
        self.nano.signum() as i8
    }

    /// Whole units, rounded away from zero, capped to `i64`.
    pub fn value(self) -> i64 {
        self.rounded(NANO)
    }

    /// Thousandths, rounded away from zero, capped to `i64`.
    pub fn millis(self) -> i64 {
        self.rounded(NANO / 1000)
    }

    fn rounded(self, unit_nano: i128) -> i64 {
        let magnitude = (self.nano.abs() + unit_nano - 1) / unit_nano;
        let capped = i64::try_from(magnitude).unwrap_or(i64::MAX);
        if self.nano < 0 { -capped } else { capped }
    }

    /// The nearest floating-point number, for scores and reports.
    pub fn to_f64(self) -> f64 {
        self.nano as f64 / NANO as f64
    }

    fn combined(self, nano: i128, other: Self) -> Self {
        // Kubernetes: a zero takes the format of what is added to it.
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nano: nano.clamp(-LIMIT_NANO, LIMIT_NANO), format }
    }
}

impl ops::Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.combined(self.nano + other.nano, other)
    }
}

impl ops::Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.combined(self.nano - other.nano, other)
    }
}

impl ops::Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        Self { nano: -self.nano, ..self }
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(quantities: I) -> Self {
        quantities.fold(Self::ZERO, |total, quantity| total + quantity)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl std::str::FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        Self::parse(text)
    }
}

/// The canonical form: no fraction, no precision lost, the suffix as large as possible.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        let whole = self.nano % NANO == 0;
        if self.format == Format::BinarySi && whole && self.nano.abs() >= 1024 * NANO {
            let mut number = self.nano / NANO;
            let mut power = 0;
            while number % 1024 == 0 && power < 6 {
                number /= 1024;
                power += 1;
            }
            return write!(f, "{number}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]);
        }
        let mut number = self.nano;
        let mut exponent: i32 = -9;
        while number % 1000 == 0 && (self.format == Format::DecimalExponent || exponent < 18) {
            number /= 1000;
            exponent += 3;
        }
        match self.format {
            Format::DecimalExponent if exponent == 0 => write!(f, "{number}"),
            Format::DecimalExponent => write!(f, "{number}e{exponent}"),
            Format::DecimalSi | Format::BinarySi => {
                let suffixes = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
                write!(f, "{number}{}", suffixes[(exponent / 3 + 3) as usize])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Quantity {
        Quantity::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn canonical_forms() {
        let cases = "
            0 0 | 0.0 0 | -0 0 | 1 1 | 1.5 1500m | 0.5 500m | 100m 100m | 1000m 1 | 0.1m 100u | 1n 1n | 0.1n 1n | 1.5n 2n
            1k 1k | 1000 1k | 1500 1500 | 1000k 1M | 12M 12M | 1.25G 1250M | 1E 1E | 1000E 1000E | .5 500m | 1. 1 | +1 1 | -1.5 -1500m
            1Ki 1Ki | 1024Mi 1Gi | 1.5Gi 1536Mi | 0.5Mi 512Ki | 0.5Ki 512 | 1023Ki 1023Ki | 0.1Gi 107374182400m | 1048576Ki 1Gi | 0.0001Ki 102400u
            100Ei 9223372036854775807 | 16Ei 9223372036854775807 | 1e3 1e3 | 1e0 1 | 12e6 12e6 | 100e3 100e3 | 1e-3 1e-3 | 1.5e1 15 | 1E6 1e6 | 1e1 10
        ";
        for case in cases.split(['|', '\n']).map(str::trim).filter(|case| !case.is_empty()) {
            let (text, expected) = case.split_once(' ').unwrap();
            assert_eq!(parse(text).to_string(), expected, "{text}");
            assert_eq!(parse(expected), parse(text), "{text}");
        }
    }

    #[test]
    fn texts_that_are_kept() {
        let cases = [
            ("1.125", "1.125"),
            ("0.500", "500m"),
            ("1.5", "1500m"),
            ("1024Mi", "1Gi"),
            ("1e3", "1e3"),
            ("64Mi", "64Mi"),
            ("0", "0"),
        ];
        for (text, expected) in cases {
            assert_eq!(Quantity::canonical_text(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn errors() {
        for text in ["", "+", ".", "m", "aoeu", "1.0.0", "1.0 M", "1+1.0M", "0.1am", "1.1.M", " 1", "1é"] {
            assert_eq!(Quantity::parse(text), Err(QuantityError::Format), "{text}");
        }
        for text in ["1i", ".5i", "-3.01e-", "0.1mi", "1KiKi", "1ee1", "1e99999999999999999999"] {
            assert_eq!(Quantity::parse(text), Err(QuantityError::Suffix), "{text}");
        }
    }

    #[test]
    fn rounding_and_capping() {
        assert_eq!(parse("1500m").value(), 2);
        assert_eq!(parse("-1500m").value(), -2);
        assert_eq!(parse("1u").millis(), 1);
        assert_eq!(parse("1.5Gi").value(), 1_610_612_736);
        assert_eq!(parse("1e1000").value(), i64::MAX);
        assert_eq!(parse("1e-1000").to_string(), "1e-9");
        assert_eq!(parse("0e1000").value(), 0);
        assert_eq!((parse("1e1000") + parse("1e1000")).value(), i64::MAX);
    }

    #[test]
    fn sums_keep_the_format_of_the_first_that_is_not_zero() {
        assert_eq!([parse("0"), parse("1Gi"), parse("512Mi")].into_iter().sum::<Quantity>().to_string(), "1536Mi");
        assert_eq!((parse("1") - parse("100m")).to_string(), "900m");
        assert!(parse("1") == parse("1000m") && parse("1Ki") > parse("1k") && parse("-1") < parse("0"));
    }

    proptest! {
        #[test]
        fn a_canonical_text_means_the_same_amount(number in -1_000_000_000_000_i64..1_000_000_000_000, suffix in "|n|u|m|k|M|Ki|Mi|e3|e-2") {
            let quantity = parse(&format!("{number}{suffix}"));
            let text = quantity.to_string();
            prop_assert_eq!(parse(&text), quantity);
            prop_assert_eq!(parse(&text).to_string(), text);
        }

        #[test]
        fn order_is_the_order_of_values(left in -1_000_000_i64..1_000_000, right in -1_000_000_i64..1_000_000) {
            let (l, r) = (parse(&format!("{left}m")), parse(&format!("{right}e-3")));
            prop_assert_eq!(l.cmp(&r), left.cmp(&right));
            prop_assert_eq!((l + r).millis(), left + right);
            prop_assert_eq!((l - r) + r, l);
        }

        #[test]
        fn no_text_panics(text in "[-+]?[0-9.]{0,40}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,5}") {
            if let Ok(quantity) = Quantity::parse(&text) {
                prop_assert!(quantity.to_string().len() < 48);
                prop_assert!(Quantity::canonical_text(&text).is_ok());
            }
        }
    }
}
