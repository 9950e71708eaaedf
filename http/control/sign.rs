//! The signature of a callback: who knows the secret can tell that this server sent it, when, and
//! that nobody changed it.

use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The value of `Incoming-Signature`: `t=<seconds since 1970>,v1=<hexadecimal HMAC-SHA256>`, taken
/// over the seconds, a full stop and the body.
pub(super) fn signature(secret: &str, now: SystemTime, body: &[u8]) -> String {
    let unix_s = now.duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs());
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length will do");
    mac.update(format!("{unix_s}.").as_bytes());
    mac.update(body);
    format!("t={unix_s},v1={}", HEXLOWER.encode(&mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    /// As a web app would do it, in the language of the examples.
    const PYTHON: &str = "\
import hashlib, hmac, sys
secret, unix_s, body = (bytes.fromhex(it) for it in sys.argv[1:])
print(hmac.new(secret, unix_s + b'.' + body, hashlib.sha256).hexdigest())";

    fn by_python(secret: &str, unix_s: &str, body: &[u8]) -> String {
        let words = [secret.as_bytes(), unix_s.as_bytes(), body];
        let output = Command::new("python3")
            .args(["-c", PYTHON])
            .args(words.map(|it| HEXLOWER.encode(it)))
            .output()
            .expect("run python3 (apt-get install python3)");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    #[test]
    fn is_what_python_computes() {
        let long = "s".repeat(200);
        for (secret, unix_s, body) in [
            ("secret", 0, &b""[..]),
            ("Ein Geheimnis \u{fc}", 1_700_000_000, b"id=1&cancelled=no"),
            (&long, 4_102_444_800, &[0x2e; 5000]),
            ("", 1, b"."),
        ] {
            let at = UNIX_EPOCH + Duration::from_millis(unix_s * 1000 + 999);
            let expected =
                format!("t={unix_s},v1={}", by_python(secret, &unix_s.to_string(), body));
            assert_eq!(signature(secret, at, body), expected);
        }
    }

    #[test]
    fn a_known_one() {
        let at = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(
            signature("a secret of 16 bytes or more", at, b"id=1&secret=x"),
            "t=1700000000,v1=92bd12992599ec5fed92c77c985ba4f64f96dc9bc84b77442c175ee2a75660b6"
        );
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert!(signature("s", before, b"").starts_with("t=0,v1="));
    }
}
