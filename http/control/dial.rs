//! Connections to web apps: a name becomes addresses, an address a socket, and `https` a TLS
//! session on it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::client::CallError;
use super::lookup::Lookups;

/// What a request can be sent on.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Makes connections.
pub(super) struct Dialer {
    lookups: Lookups,
    /// `None` if there is no certificate to trust.
    tls: Option<TlsConnector>,
}

impl Dialer {
    /// Trusts the authorities of this system and `own` ones.
    pub(super) fn new(own: &[CertificateDer<'static>]) -> Self {
        Self { lookups: Lookups::new(), tls: tls(own) }
    }

    /// A connection to the server that an http or https URL names. Dropping the future, or the
    /// stream, closes all sockets.
    pub(super) async fn open(&self, url: &Url) -> Result<Box<dyn Stream>, CallError> {
        let is_tls = url.scheme() == "https";
        let tls = match (is_tls, &self.tls) {
            (true, None) => return Err(CallError::RootCertificatesMissing),
            (_, tls) => tls.as_ref().filter(|_| is_tls),
        };
        let host = url.host().ok_or(CallError::UrlInvalid(url::ParseError::EmptyHost))?;
        let addresses: Arc<[IpAddr]> = match host {
            Host::Ipv4(it) => Arc::new([it.into()]),
            Host::Ipv6(it) => Arc::new([it.into()]),
            Host::Domain(name) => self.lookups.find(name).await.map_err(CallError::Lookup)?,
        };
        let port = url.port_or_known_default().unwrap_or(0);
        let socket = connect(&addresses, port).await.map_err(CallError::Connect)?;
        let Some(tls) = tls else { return Ok(Box::new(socket)) };
        let name = match host {
            Host::Ipv4(it) => ServerName::from(IpAddr::from(it)),
            Host::Ipv6(it) => ServerName::from(IpAddr::from(it)),
            Host::Domain(name) => ServerName::try_from(name.to_owned())
                .map_err(|_| CallError::UrlInvalid(url::ParseError::InvalidDomainCharacter))?,
        };
        Ok(Box::new(tls.connect(name, socket).await.map_err(CallError::Tls)?))
    }
}

/// The first of some addresses that accepts: each gets a head start over the next (RFC 8305,
/// section 5).
async fn connect(addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    let mut left = addresses.iter().take(ADDRESSES_MAX);
    let mut attempts = JoinSet::new();
    let mut error = io::Error::other("no address");
    loop {
        if let Some(address) = left.next() {
            attempts.spawn(TcpStream::connect(SocketAddr::new(*address, port)));
        }
        tokio::select! {
            Some(ended) = attempts.join_next() => match ended.map_err(io::Error::other) {
                Ok(Ok(socket)) => {
                    // Only a matter of speed.
                    let _ = socket.set_nodelay(true);
                    return Ok(socket);
                }
                Ok(Err(failed)) | Err(failed) => error = failed,
            },
            () = tokio::time::sleep(HEAD_START), if left.len() > 0 => {}
            else => return Err(error),
        }
    }
}

fn tls(own: &[CertificateDer<'static>]) -> Option<TlsConnector> {
    let mut roots = RootCertStore::empty();
    // A system has some that are of no use; the others count.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots.add_parsable_certificates(own.iter().cloned());
    if roots.is_empty() {
        return None;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider knows these versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Some(TlsConnector::from(Arc::new(config)))
}

const HEAD_START: Duration = Duration::from_millis(250);
/// A name with many addresses must not take many sockets.
const ADDRESSES_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(test: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(test)
    }

    #[test]
    fn an_address_that_refuses_is_followed_by_the_next() {
        let address = |last| IpAddr::from([127, 0, 0, last]);
        let listener = std::net::TcpListener::bind((address(3), 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let connect = |addresses: Vec<IpAddr>| run(async move { connect(&addresses, port).await });
        let socket = connect(vec![address(1), address(2), address(3)]).unwrap();
        assert_eq!(socket.peer_addr().unwrap().ip(), address(3));
        let error = connect(vec![address(1), address(2)]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        // No more than four are tried.
        let mut many: Vec<IpAddr> = [4, 5, 6, 7].map(address).to_vec();
        many.push(address(3));
        assert!(connect(many).is_err());
        assert!(connect(Vec::new()).is_err());
    }

    #[test]
    fn an_address_that_hangs_does_not_hold_up_the_next() {
        let good = std::net::TcpListener::bind("127.0.0.3:0").unwrap();
        let port = good.local_addr().unwrap().port();
        // A full backlog: the kernel lets further connections wait.
        let full =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&SocketAddr::from(([127, 0, 0, 4], port)).into()).unwrap();
        full.listen(0).unwrap();
        let hanging = full.local_addr().unwrap();
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let it = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
                let it = it.unwrap();
                it.set_nonblocking(true).unwrap();
                let _ = it.connect(&hanging);
                it
            })
            .collect();
        let addresses = [IpAddr::from([127, 0, 0, 4]), IpAddr::from([127, 0, 0, 3])];
        let socket = run(connect(&addresses, port)).unwrap();
        assert_eq!(socket.peer_addr().unwrap().ip(), addresses[1]);
        drop(waiting);
    }
}
