//! Settings that are files, and settings that nobody else may read.

use std::fmt;
use std::fs;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::units::Problem;

/// A text that appears in no log and no message.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A value as a message may show it. Also a mistyped key's, if it might be a secret's.
pub(super) fn shown(key: &str, value: String) -> String {
    let key = key.to_ascii_lowercase();
    if key.contains("secr") && !key.ends_with("file") { "(hidden)".to_owned() } else { value }
}

/// Empty: none.
pub(super) fn parse_secret(text: &str) -> Result<Option<Secret>, Problem> {
    match text.len() {
        0 => Ok(None),
        1..SECRET_BYTES_MIN => Err(Problem::new(
            format!("it is shorter than {SECRET_BYTES_MIN} bytes, so it can be guessed"),
            "make one with: openssl rand -hex 32",
        )),
        _ => Ok(Some(text.into())),
    }
}

/// The secret that a file holds, without the space around it.
pub(super) fn read_secret(path: &str) -> Result<Secret, Problem> {
    let text = read(path, "openssl rand -hex 32 > FILE")?;
    let text = String::from_utf8(text).map_err(|_| {
        Problem::new(
            "the file is not text",
            "write the secret as text: openssl rand -hex 32 > FILE",
        )
    })?;
    parse_secret(text.trim())?.ok_or_else(|| {
        Problem::new("the file is empty", "write a secret into it: openssl rand -hex 32 > FILE")
    })
}

/// The certificates of a PEM file. No path: none.
pub(super) fn read_certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, Problem> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let remedy = "give a PEM file with the certificates of authorities, each between BEGIN \
                  CERTIFICATE and END CERTIFICATE";
    let text = read(path, "openssl x509 -in ca.der -inform DER -out FILE")?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = certificates
        .map_err(|error| Problem::new(format!("the file is not PEM: {error}"), remedy))?;
    if certificates.is_empty() {
        return Err(Problem::new("the file holds no certificate", remedy));
    }
    let mut roots = RootCertStore::empty();
    for (index, it) in certificates.iter().enumerate() {
        roots.add(it.clone()).map_err(|error| {
            let number = index + 1;
            Problem::new(format!("certificate {number} of the file is of no use: {error}"), remedy)
        })?;
    }
    Ok(certificates)
}

fn read(path: &str, example: &str) -> Result<Vec<u8>, Problem> {
    fs::read(path).map_err(|error| {
        Problem::new(
            format!("the file cannot be read: {error}"),
            format!("give a file that exists and that this user may read ({example}), or none"),
        )
    })
}

/// 128 bits, if somebody types them in hexadecimal halves.
const SECRET_BYTES_MIN: usize = 16;
