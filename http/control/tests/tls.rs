//! https: whom the server believes.

use std::io::{Read, Write};
use std::sync::Arc;
use std::thread;

use engine::handover::Answer;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType,
    date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::{Bench, PATIENCE, Settings, assert_unreached};

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn vouching(authorities: &[&Issuer]) -> Bench {
    let own_ca = authorities.iter().map(|it| it.der().clone()).collect();
    Bench::with(Settings { timeout: PATIENCE, secret: None, own_ca, core_count: 1 })
}

/// A web app with a certificate that `change` may spoil; returns its port.
fn start(issuer: &Issuer, change: impl Fn(&mut CertificateParams)) -> u16 {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        runtime.block_on(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(socket).await else { return };
                    let mut request = Vec::new();
                    while !super::is_complete(&request) {
                        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let path = String::from_utf8_lossy(&request);
                    let answer = if path.starts_with("POST /plain") {
                        "HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n"
                    } else if path.starts_with("POST /cut") {
                        "HTTP/1.1 200 OK\r\n\r\ndone"
                    } else {
                        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone"
                    };
                    let _ = stream.write_all(answer.as_bytes()).await;
                    if path.starts_with("POST /cut") {
                        // Not the end that TLS has for it: anybody on the way can do that.
                        let _ = stream.flush().await;
                        let _ = stream.get_mut().0.shutdown().await;
                    } else {
                        let _ = stream.shutdown().await;
                    }
                });
            }
        });
    });
    port
}

#[test]
fn who_an_own_authority_vouches_for_is_believed() {
    let (one, other) = (authority("one"), authority("other"));
    let port = start(&one, |_| {});
    for authorities in [vec![&one], vec![&other, &one]] {
        let bench = vouching(&authorities);
        assert_eq!(bench.arrived(&format!("https://localhost:{port}/x")), Answer::Done);
        assert_eq!(bench.arrived(&format!("https://127.0.0.1:{port}/x")), Answer::Done);
        assert_eq!(bench.cancelled(&format!("https://localhost:{port}/x")), Answer::Done);
    }
}

#[test]
fn who_nobody_vouches_for_is_not_told() {
    let (one, other) = (authority("one"), authority("other"));
    let (yesterday, far) = (date_time_ymd(2001, 1, 1), date_time_ymd(4000, 1, 1));
    let good = start(&one, |_| {});
    let wrong_name = start(&one, |it| {
        it.subject_alt_names = vec![SanType::DnsName("elsewhere.example".try_into().unwrap())];
    });
    let expired = start(&one, |it| {
        it.not_before = date_time_ymd(2000, 1, 1);
        it.not_after = yesterday;
    });
    let early = start(&one, |it| it.not_before = far);
    let own = vouching(&[&one]);
    for (bench, port, text) in [
        (&vouching(&[&other]), good, "UnknownIssuer"),
        (&own, wrong_name, "not valid for name"),
        (&own, expired, "expired"),
        (&own, early, "not valid yet"),
    ] {
        let url = format!("https://localhost:{port}/");
        assert_unreached(bench.arrived(&url), text);
        assert_unreached(bench.cancelled(&url), text);
    }
    // Without own authorities those of the system do not know it either.
    let answer = vouching(&[]).arrived(&format!("https://localhost:{good}/"));
    let Answer::Unreached { error, .. } = answer else { panic!("{answer:?}") };
    assert!(error.contains("UnknownIssuer") || error.contains("no root certificates"), "{error}");
}

#[test]
fn what_speaks_no_tls_is_not_told() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let (report, received) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut bytes = vec![0; 16 << 10];
        let length = socket.read(&mut bytes).unwrap();
        bytes.truncate(length);
        report.send(bytes).unwrap();
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    });
    assert_unreached(vouching(&[&authority("one")]).arrived(&url), "no TLS session");
    let bytes = received.recv_timeout(PATIENCE).unwrap();
    assert!(!bytes.windows(6).any(|it| it == b"secret"), "nothing is sent in the open");
}

#[test]
fn nothing_leads_from_https_to_http() {
    let one = authority("one");
    let (port, bench) = (start(&one, |_| {}), vouching(&[&one]));
    let answer = bench.arrived(&format!("https://localhost:{port}/plain"));
    super::assert_refused(answer, "redirect from https to http");
}

#[test]
fn a_session_that_is_cut_off_is_no_answer() {
    let one = authority("one");
    let (port, bench) = (start(&one, |_| {}), vouching(&[&one]));
    assert_unreached(bench.arrived(&format!("https://localhost:{port}/cut")), "close_notify");
}
