//! `multipart/form-data` (RFC 7578 over RFC 2046 section 5.1).

use super::params::ParamsError;
use super::request_syntax::is_token_byte;

/// Calls `each` with name and value of every part. File parts are values like the others; bytes
/// that are not UTF-8 are replaced.
pub(super) fn for_each_part(
    body: &[u8],
    boundary: &str,
    mut each: impl FnMut(String, String) -> Result<(), ParamsError>,
) -> Result<(), ParamsError> {
    let delimiter = format!("\r\n--{boundary}");
    let delimiter = delimiter.as_bytes();
    // The first delimiter may stand at the very beginning, without its line end.
    let mut rest = match body.strip_prefix(&delimiter[2..]) {
        Some(rest) => rest,
        None => split_at(body, delimiter)?.1,
    };
    while !rest.starts_with(b"--") {
        let (padding, part) = split_at(rest, b"\r\n")?;
        if !padding.iter().all(|it| matches!(it, b' ' | b'\t')) {
            return Err(ParamsError::MultipartMalformed);
        }
        let (content, after) = split_at(part, delimiter)?;
        // A part without any field begins with the empty line that would end the fields.
        let (fields, value) = match content.strip_prefix(b"\r\n") {
            Some(value) => (&[][..], value),
            None => split_at(content, b"\r\n\r\n")?,
        };
        let name = part_name(fields)?;
        each(name, String::from_utf8_lossy(value).into_owned())?;
        rest = after;
    }
    Ok(())
}

/// The boundary that a content type states: 1 to 70 characters.
pub(super) fn boundary(content_type: &str) -> Result<String, ParamsError> {
    let (_, parameters) = content_type.split_once(';').ok_or(ParamsError::BoundaryInvalid)?;
    let boundary = parameter(parameters, "boundary").ok_or(ParamsError::BoundaryInvalid)?;
    let valid = |it: u8| it.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&it);
    if (1..=BOUNDARY_BYTES_MAX).contains(&boundary.len())
        && boundary.bytes().all(valid)
        && !boundary.ends_with(' ')
    {
        Ok(boundary)
    } else {
        Err(ParamsError::BoundaryInvalid)
    }
}

/// The name that the part's `Content-Disposition: form-data` states.
fn part_name(fields: &[u8]) -> Result<String, ParamsError> {
    if fields.len() > PART_FIELDS_BYTES_MAX {
        return Err(ParamsError::MultipartMalformed);
    }
    let fields = std::str::from_utf8(fields).map_err(|_| ParamsError::MultipartMalformed)?;
    for field in fields.split("\r\n").filter(|it| !it.is_empty()) {
        let (name, value) = field.split_once(':').ok_or(ParamsError::MultipartMalformed)?;
        if name.is_empty() || !name.bytes().all(is_token_byte) {
            return Err(ParamsError::MultipartMalformed);
        }
        if name.eq_ignore_ascii_case("content-disposition") {
            let (kind, parameters) = value.split_once(';').unwrap_or((value, ""));
            if !kind.trim().eq_ignore_ascii_case("form-data") {
                return Err(ParamsError::PartNameMissing);
            }
            return parameter(parameters, "name").ok_or(ParamsError::PartNameMissing);
        }
    }
    Err(ParamsError::PartNameMissing)
}

/// The value of a parameter in `a=b; c="d"`. `None` as well when what comes before it is malformed.
fn parameter(mut parameters: &str, wanted: &str) -> Option<String> {
    loop {
        let (name, rest) = parameters.trim_start().split_once('=')?;
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let length = rest.find(';').unwrap_or(rest.len());
                (rest[..length].trim_end().to_owned(), &rest[length..])
            }
        };
        if name.eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        parameters = rest.trim_start().strip_prefix(';')?;
    }
}

/// Reads on after an opening quote: the content, and what follows the closing quote. Only quote and
/// backslash can be escaped: old browsers put unescaped backslashes into names.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut content = String::new();
    let mut characters = quoted.char_indices().peekable();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((content, &quoted[index + 1..])),
            '\\' => {
                let escaped = characters.next_if(|(_, it)| matches!(it, '"' | '\\'));
                content.push(escaped.map_or('\\', |it| it.1));
            }
            other => content.push(other),
        }
    }
    None
}

/// What is before and after the first `separator`, which must be there.
fn split_at<'a>(bytes: &'a [u8], separator: &[u8]) -> Result<(&'a [u8], &'a [u8]), ParamsError> {
    let at = bytes
        .windows(separator.len())
        .position(|it| it == separator)
        .ok_or(ParamsError::MultipartMalformed)?;
    Ok((&bytes[..at], &bytes[at + separator.len()..]))
}

/// RFC 2046 section 5.1.1.
const BOUNDARY_BYTES_MAX: usize = 70;
const PART_FIELDS_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::ParamsError::*;
    use super::*;

    fn parts(body: &str) -> Result<Vec<(String, String)>, ParamsError> {
        let mut parts = Vec::new();
        for_each_part(body.as_bytes(), "B-1", |name, value| {
            parts.push((name, value));
            Ok(())
        })?;
        Ok(parts)
    }

    #[test]
    fn bodies_as_clients_send_them() {
        type Parts<'a> = &'a [(&'a str, &'a str)];
        let rows: [(&str, &str, Parts<'_>); 9] = [
            ("no parts", "--B-1--\r\n", &[]),
            (
                "two parts",
                "--B-1\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n\
                 --B-1\r\nContent-Disposition: form-data; name=\"b\"\r\n\r\n\r\n--B-1--\r\n",
                &[("a", "1"), ("b", "")],
            ),
            (
                "a file",
                "--B-1\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a\\\".txt\"\r\n\
                 Content-Type: text/plain\r\n\r\nline\r\n\r\n--B-2\r\n\r\n--B-1--",
                &[("f", "line\r\n\r\n--B-2\r\n")],
            ),
            (
                "other order, preamble and epilogue",
                "for people\r\n--B-1 \t\r\nContent-Type: text/plain\r\n\
                 content-disposition:FORM-DATA;filename=x; NAME=a\r\n\r\n1\r\n--B-1--\r\nmore",
                &[("a", "1")],
            ),
            (
                "quoted characters",
                "--B-1\r\nContent-Disposition: form-data; name=\"a\\\"b\\\\c\\d;=\u{e4}\"\r\n\r\n\
                 \u{e4}\r\n--B-1--",
                &[("a\"b\\c\\d;=\u{e4}", "\u{e4}")],
            ),
            (
                "the name of another parameter in quotes",
                "--B-1\r\nContent-Disposition: form-data; filename=\"; name=x\"; name=a\r\n\r\n1\r\n\
                 --B-1--",
                &[("a", "1")],
            ),
            (
                "empty name",
                "--B-1\r\nContent-Disposition: form-data; name=\"\"\r\n\r\n1\r\n--B-1--",
                &[("", "1")],
            ),
            (
                "line ends kept",
                "--B-1\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n1\n\r\n\r\n--B-1--",
                &[("a", "\r\n1\n\r\n")],
            ),
            (
                "near the delimiter",
                "--B-1\r\nContent-Disposition: form-data; name=a\r\n\r\n\n--B-1\r\n--B-\r\n--B-1--",
                &[("a", "\n--B-1\r\n--B-")],
            ),
        ];
        for (name, body, expected) in rows {
            let parts = parts(body).expect(name);
            let parts: Vec<_> = parts.iter().map(|it| (it.0.as_str(), it.1.as_str())).collect();
            assert_eq!(parts, expected, "{name}");
        }
    }

    #[test]
    fn refusals() {
        for (name, body, expected) in [
            ("empty", "", MultipartMalformed),
            ("no delimiter", "a=b", MultipartMalformed),
            (
                "cut in a part",
                "--B-1\r\nContent-Disposition: form-data; name=a\r\n\r\n1",
                MultipartMalformed,
            ),
            (
                "no end",
                "--B-1\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--B-1\r\n",
                MultipartMalformed,
            ),
            (
                "fields without end",
                "--B-1\r\nContent-Disposition: form-data; name=a\r\n--B-1--",
                MultipartMalformed,
            ),
            ("longer delimiter", "--B-1x\r\n\r\n\r\n--B-1--", MultipartMalformed),
            (
                "bare line feeds",
                "--B-1\nContent-Disposition: form-data; name=a\n\n1\n--B-1--",
                MultipartMalformed,
            ),
            ("field without colon", "--B-1\r\nContent\r\n\r\n1\r\n--B-1--", MultipartMalformed),
            ("no fields", "--B-1\r\n\r\n1\r\n--B-1--", PartNameMissing),
            (
                "no name",
                "--B-1\r\nContent-Disposition: form-data\r\n\r\n1\r\n--B-1--",
                PartNameMissing,
            ),
            (
                "quote left open",
                "--B-1\r\nContent-Disposition: form-data; name=\"a\r\n\r\n1\r\n--B-1--",
                PartNameMissing,
            ),
            (
                "attachment",
                "--B-1\r\nContent-Disposition: attachment; name=a\r\n\r\n1\r\n--B-1--",
                PartNameMissing,
            ),
        ] {
            assert_eq!(parts(body), Err(expected), "{name}");
        }
    }

    #[test]
    fn boundaries() {
        let seventy = "x".repeat(70);
        for (content_type, expected) in [
            ("multipart/form-data; boundary=abc", Some("abc")),
            ("multipart/form-data;charset=utf-8;BOUNDARY=\"a b:c\"", Some("a b:c")),
            ("multipart/form-data; boundary=abc ; x=y", Some("abc")),
            (&format!("multipart/form-data; boundary={seventy}"), Some(&*seventy)),
            (&format!("multipart/form-data; boundary={seventy}x"), None),
            ("multipart/form-data", None),
            ("multipart/form-data; boundary=", None),
            ("multipart/form-data; boundary=\"", None),
            ("multipart/form-data; boundary=\"a \"", None),
            ("multipart/form-data; boundary=a\"b", None),
            ("multipart/form-data; boundary=\u{e4}", None),
        ] {
            assert_eq!(boundary(content_type).ok().as_deref(), expected, "{content_type}");
        }
    }
}
