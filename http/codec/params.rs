//! The parameters of a request: query string and form body as one.

use super::multipart::{self, boundary};

/// Names and values. A name in the body wins over the same name in the query; of a repeated name
/// the first value counts. Names are case-sensitive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params {
    /// Those of the body first.
    pairs: Vec<(String, String)>,
}

/// Why parameters cannot be read: the status is 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamsError {
    TooMany,
    BoundaryInvalid,
    MultipartMalformed,
    PartNameMissing,
}

impl Params {
    /// `application/x-www-form-urlencoded` and `multipart/form-data` bodies are read; of a request
    /// with any other content type, or none, only the query counts.
    pub fn from_request(
        query: Option<&str>,
        content_type: Option<&str>,
        body: &[u8],
    ) -> Result<Self, ParamsError> {
        let mut params = Self::default();
        let content_type = content_type.unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            params.extend_urlencoded(body)?;
        } else if essence.eq_ignore_ascii_case("multipart/form-data") {
            let boundary = boundary(content_type)?;
            multipart::for_each_part(body, &boundary, |name, value| params.push(name, value))?;
        }
        params.extend_urlencoded(query.unwrap_or_default().as_bytes())?;
        Ok(params)
    }

    /// The value that counts.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|it| it.0 == name).map(|it| it.1.as_str())
    }

    fn extend_urlencoded(&mut self, bytes: &[u8]) -> Result<(), ParamsError> {
        for (name, value) in form_urlencoded::parse(bytes) {
            self.push(name.into_owned(), value.into_owned())?;
        }
        Ok(())
    }

    fn push(&mut self, name: String, value: String) -> Result<(), ParamsError> {
        if self.pairs.len() == PARAM_COUNT_MAX {
            return Err(ParamsError::TooMany);
        }
        self.pairs.push((name, value));
        Ok(())
    }
}

impl ParamsError {
    /// One sentence for the body of the response.
    pub fn message(self) -> &'static str {
        match self {
            Self::TooMany => "The request has too many parameters.",
            Self::BoundaryInvalid => "The Content-Type has no valid multipart boundary.",
            Self::MultipartMalformed => "The multipart body is malformed.",
            Self::PartNameMissing => "A part of the multipart body has no name.",
        }
    }
}

/// Query and body together.
const PARAM_COUNT_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: Option<&str> = Some("application/x-www-form-urlencoded");

    #[test]
    fn the_body_wins_and_the_first_value_counts() {
        let params = Params::from_request(
            Some("id=query&only=q1&only=q2&Id=other"),
            Some("Application/X-WWW-Form-Urlencoded; charset=UTF-8"),
            b"id=body&id=again&empty=&name=a+b%20%C3%A4%26",
        )
        .expect("valid");
        for (name, value) in [
            ("id", Some("body")),
            ("only", Some("q1")),
            ("Id", Some("other")),
            ("ID", None),
            ("empty", Some("")),
            ("name", Some("a b \u{e4}&")),
        ] {
            assert_eq!(params.value(name), value, "{name}");
        }
    }

    #[test]
    fn other_bodies_are_not_read() {
        for content_type in [None, Some(""), Some("application/json"), Some("text/plain")] {
            let params =
                Params::from_request(Some("id=query"), content_type, b"id=body").expect("valid");
            assert_eq!(params.value("id"), Some("query"), "{content_type:?}");
        }
    }

    #[test]
    fn multipart_bodies() {
        let body = b"--b\r\nContent-Disposition: form-data; name=\"id\"\r\n\r\nbody\r\n--b--\r\n";
        let content_type = Some("multipart/form-data; boundary=b");
        let params = Params::from_request(Some("id=query&x=y"), content_type, body).expect("valid");
        assert_eq!((params.value("id"), params.value("x")), (Some("body"), Some("y")));
        let refused = Params::from_request(None, content_type, b"id=body");
        assert_eq!(refused, Err(ParamsError::MultipartMalformed));
    }

    #[test]
    fn their_number_has_a_limit() {
        let body = "a=b&".repeat(PARAM_COUNT_MAX);
        assert!(Params::from_request(None, FORM, body.as_bytes()).is_ok());
        let refused = Params::from_request(Some("c"), FORM, body.as_bytes());
        assert_eq!(refused, Err(ParamsError::TooMany));
        let part = "--b\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n";
        let body = format!("{}--b--", part.repeat(PARAM_COUNT_MAX + 1));
        let content_type = Some("multipart/form-data; boundary=b");
        let refused = Params::from_request(None, content_type, body.as_bytes());
        assert_eq!(refused, Err(ParamsError::TooMany));
    }
}
