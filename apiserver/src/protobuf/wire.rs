//! The wire format of protobuf: fields with their numbers.

use super::ProtobufError;

/// A number as it stands on the wire.
#[derive(Clone, Copy, Debug)]
pub enum Number {
    Varint(u64),
    Fixed(u64),
}

/// The content of one field.
#[derive(Clone, Copy, Debug)]
pub enum Field<'a> {
    Number(Number),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    pub fn bytes(self) -> Result<&'a [u8], ProtobufError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) => Err(ProtobufError::Malformed),
        }
    }

    pub fn text(self) -> Result<String, ProtobufError> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| ProtobufError::Malformed)
    }

    /// Negative numbers are written as their two's complement.
    pub fn integer(self) -> Result<i64, ProtobufError> {
        match self {
            Self::Number(Number::Varint(number)) => Ok(number.cast_signed()),
            _ => Err(ProtobufError::Malformed),
        }
    }

    pub fn double(self) -> Result<f64, ProtobufError> {
        match self {
            Self::Number(Number::Fixed(bits)) => Ok(f64::from_bits(bits)),
            _ => Err(ProtobufError::Malformed),
        }
    }
}

/// Reads the fields of one message.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next field with its number; `None` at the end.
    pub fn field(&mut self) -> Result<Option<(u32, Field<'a>)>, ProtobufError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| ProtobufError::Malformed)?;
        let field = match tag & 7 {
            0 => Field::Number(Number::Varint(self.varint()?)),
            1 => Field::Number(Number::Fixed(self.fixed(8)?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| ProtobufError::Malformed)?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Number(Number::Fixed(self.fixed(4)?)),
            _ => return Err(ProtobufError::Malformed),
        };
        Ok(Some((number, field)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtobufError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(ProtobufError::Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    fn fixed(&mut self, length: usize) -> Result<u64, ProtobufError> {
        let bytes = self.take(length)?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(ProtobufError::Malformed)
    }
}
