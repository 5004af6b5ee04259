//! The grammar of the `labelSelector` parameter (`k8s.io/apimachinery/pkg/labels`).

use super::{
    SelectorError,
    label::{Operator, Requirement},
};
use crate::{field::FieldError, names};

const BINARY_OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// `=`, `!=`, `(`, … A run of symbols that is none of them is an error, found where it is parsed.
    Symbol(&'static str),
    Word(String),
    Unknown(String),
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Self::Symbol(text) => text,
            Self::Word(text) | Self::Unknown(text) => text,
            Self::End => "",
        }
    }
}

fn symbol(text: &str) -> Option<&'static str> {
    [")", ",", "!", "==", "=", ">", "<", "!=", "("].into_iter().find(|symbol| *symbol == text)
}

fn is_symbol_part(letter: char) -> bool {
    matches!(letter, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

fn is_space(letter: char) -> bool {
    matches!(letter, ' ' | '\t' | '\r' | '\n')
}

fn tokens(selector: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = selector.trim_start_matches(is_space);
    while let Some(first) = rest.chars().next() {
        let length = if is_symbol_part(first) {
            let two = rest.get(..2).and_then(symbol);
            let found = two.or_else(|| symbol(&rest[..1]));
            tokens.push(found.map_or_else(|| Token::Unknown(format!("error expected: keyword found '{first}'")), Token::Symbol));
            found.map_or(1, str::len)
        } else {
            let length = rest.find(|letter| is_symbol_part(letter) || is_space(letter)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..length].to_owned()));
            length
        };
        rest = rest[length..].trim_start_matches(is_space);
    }
    tokens.push(Token::End);
    tokens
}

/// Parses the whole parameter.
pub(super) fn requirements(selector: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut parser = Parser { tokens: tokens(selector), position: 0 };
    let mut requirements = Vec::new();
    loop {
        match parser.peek() {
            Token::Word(_) | Token::Symbol("!") => {}
            Token::End => return Ok(requirements),
            other => return Err(found(other, "!, identifier, or 'end of string'")),
        }
        let requirement = parser.requirement().map_err(|error| SelectorError(format!("unable to parse requirement: {error}")))?;
        requirements.push(requirement);
        match parser.next() {
            Token::End => return Ok(requirements),
            Token::Symbol(",") => {
                if !matches!(parser.peek(), Token::Word(_) | Token::Symbol("!")) {
                    return Err(found(parser.peek(), "identifier after ','"));
                }
            }
            other => return Err(found(&other, "',' or 'end of string'")),
        }
    }
}

fn found(token: &Token, expected: &str) -> SelectorError {
    SelectorError(format!("found '{}', expected: {expected}", token.text()))
}

struct Parser {
    /// Ends with [`Token::End`].
    tokens: Vec<Token>,
    position: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        // The last token is End and is never passed.
        &self.tokens[self.position]
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        if token != Token::End {
            self.position += 1;
        }
        token
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let mut token = self.next();
        let negated = token == Token::Symbol("!");
        if negated {
            token = self.next();
        }
        let Token::Word(key) = token else { return Err(found(&token, "identifier")) };
        let errors = names::is_qualified_name(&key);
        if !errors.is_empty() {
            // The path of the whole parameter is not set: Kubernetes prints it as "<nil>".
            return Err(SelectorError(FieldError::invalid("<nil>", key, errors.join("; ")).to_string()));
        }
        if negated {
            return Requirement::new(&key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Requirement::new(&key, Operator::Exists, Vec::new());
        }
        let operator = self.operator()?;
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(&key, operator, values)
    }

    fn operator(&mut self) -> Result<Operator, SelectorError> {
        let token = self.next();
        match token.text() {
            "in" => Ok(Operator::In),
            "notin" => Ok(Operator::NotIn),
            "=" => Ok(Operator::Equals),
            "==" => Ok(Operator::DoubleEquals),
            "!=" => Ok(Operator::NotEquals),
            ">" => Ok(Operator::GreaterThan),
            "<" => Ok(Operator::LessThan),
            _ => Err(found(&token, BINARY_OPERATORS)),
        }
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(String::new());
        }
        match self.next() {
            Token::Word(value) => Ok(value),
            other => Err(found(&other, "identifier")),
        }
    }

    /// `(a,b)`: an empty place between commas is the empty value.
    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        let open = self.next();
        if open != Token::Symbol("(") {
            return Err(SelectorError(format!("found '{}' expected: '('", open.text())));
        }
        if !matches!(self.peek(), Token::Word(_) | Token::Symbol("," | ")")) {
            return Err(found(self.peek(), "',', ')' or identifier"));
        }
        let mut values = Vec::new();
        loop {
            match self.peek() {
                Token::Word(_) => {
                    values.push(self.next().text().to_owned());
                    if !matches!(self.peek(), Token::Symbol("," | ")")) {
                        return Err(found(self.peek(), "',' or ')'"));
                    }
                }
                Token::Symbol("," | ")") => values.push(String::new()),
                other => return Err(found(other, "',', or identifier")),
            }
            if self.next() == Token::Symbol(")") {
                return Ok(values);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::LabelSelector;

    #[test]
    fn parses() {
        let cases = [
            ("", ""),
            ("x=a,y=b,z=c", "x=a,y=b,z=c"),
            ("x!=a,y==b", "x!=a,y==b"),
            ("x=", "x="),
            ("x= ,z= ", "x=,z="),
            ("!x", "!x"),
            ("x>1,y<2", "x>1,y<2"),
            ("b,a", "a,b"),
            ("x in (b,a,b)", "x in (a,b)"),
            ("x in ()", "x in ()"),
            ("x notin (,a)", "x notin (,a)"),
            ("in in (in,notin)", "in in (in,notin)"),
            (" x\tin ( a , b ) , !y ", "x in (a,b),!y"),
            ("example.com/x=1.0", "example.com/x=1.0"),
        ];
        for (text, canonical) in cases {
            let selector = LabelSelector::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(selector.to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn errors() {
        let cases = [
            ("x=a||y=b", "unable to parse requirement: values[0][x]: Invalid value: \"a||y\": a valid label must be"),
            ("x==a==b", "found '==', expected: ',' or 'end of string'"),
            ("x,", "found '', expected: identifier after ','"),
            ("=a", "found '=', expected: !, identifier, or 'end of string'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            ("x (a)", "unable to parse requirement: found '(', expected: in, notin, =, ==, !=, gt, lt"),
            ("x in a", "unable to parse requirement: found 'a' expected: '('"),
            ("x in (a", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("x in (a=)", "unable to parse requirement: found '=', expected: ',' or ')'"),
            ("x=,,", "found ',', expected: identifier after ','"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("-a", "unable to parse requirement: <nil>: Invalid value: \"-a\": name part must consist of"),
            ("a>x", "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators"),
        ];
        for (text, message) in cases {
            let error = LabelSelector::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(message), "{text}: {error}");
        }
    }
}
