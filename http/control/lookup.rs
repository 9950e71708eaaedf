//! Addresses of names. The system's resolver knows no time limit that we could set, so it gets
//! threads of its own, and a name that hangs never holds more than one of them.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

/// What a look-up found; who asked for the same name meanwhile gets the same.
type Found = Result<Arc<[IpAddr]>, Arc<io::Error>>;

/// Asks for the addresses of a name, and blocks meanwhile.
type Resolve = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// Looks names up, each once at a time.
#[derive(Clone)]
pub(super) struct Lookups {
    resolve: Arc<Resolve>,
    under_way: Arc<Mutex<HashMap<String, watch::Receiver<Option<Found>>>>>,
}

impl Lookups {
    /// With the system's resolver: `/etc/hosts`, name servers, whatever `nsswitch.conf` says.
    pub(super) fn new() -> Self {
        Self::with(|name| Ok((name, 0).to_socket_addrs()?.map(|it| it.ip()).collect()))
    }

    fn with(resolve: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Self {
        Self { resolve: Arc::new(resolve), under_way: Arc::default() }
    }

    /// The addresses of a name, in the order in which they should be tried; at least one. Dropping
    /// the future leaves the look-up to those who ask next.
    pub(super) async fn find(&self, name: &str) -> Found {
        let mut answer = self.join(name);
        match answer.wait_for(Option::is_some).await {
            Ok(found) => found.clone().expect("waited for"),
            Err(_) => Err(Arc::new(io::Error::other("the look-up has failed"))),
        }
    }

    /// Joins the look-up of `name`, or begins one.
    fn join(&self, name: &str) -> watch::Receiver<Option<Found>> {
        let mut under_way = self.under_way.lock().expect("nothing panics with it");
        if let Some(answer) = under_way.get(name) {
            return answer.clone();
        }
        let (sender, answer) = watch::channel(None);
        under_way.insert(name.to_owned(), answer.clone());
        let (lookups, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move {
            let (resolve, asked) = (Arc::clone(&lookups.resolve), name.clone());
            let resolved = tokio::task::spawn_blocking(move || resolve(&asked)).await;
            let found = match resolved.map_err(io::Error::other).and_then(|it| it) {
                Ok(addresses) if addresses.is_empty() => {
                    Err(Arc::new(io::Error::other("the name has no address")))
                }
                Ok(addresses) => Ok(addresses.into()),
                Err(error) => Err(Arc::new(error)),
            };
            lookups.under_way.lock().expect("nothing panics with it").remove(&name);
            sender.send_replace(Some(found));
        });
        answer
    }
}

/// Look-ups at a time; further names wait. A thread costs little but its name: of the stack only
/// what is touched becomes memory.
pub(super) const THREADS_MAX: usize = 256;
/// Enough for the resolvers of glibc and musl and the modules that they load.
pub(super) const STACK_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn run<T>(test: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime =
            builder.enable_all().max_blocking_threads(2).thread_stack_size(STACK_BYTES).build();
        let runtime = runtime.unwrap();
        let result = runtime.block_on(test);
        runtime.shutdown_background();
        result
    }

    #[test]
    fn a_name_that_hangs_holds_one_thread_for_all_who_ask() {
        let asked = Arc::new(AtomicUsize::new(0));
        let (open, door) = mpsc::channel::<()>();
        let (count, door) = (Arc::clone(&asked), Mutex::new(door));
        let lookups = Lookups::with(move |name| {
            if name == "hangs" {
                count.fetch_add(1, Ordering::Relaxed);
                let _ = door.lock().unwrap().recv();
            }
            Ok(vec![IpAddr::from([127, 0, 0, 9])])
        });
        run(async {
            for _ in 0..100 {
                let waiting = lookups.find("hangs");
                assert!(tokio::time::timeout(Duration::from_millis(1), waiting).await.is_err());
                // Of two threads one is free for the others.
                let other = tokio::time::timeout(PATIENCE, lookups.find("other")).await;
                assert_eq!(other.expect("a free thread").unwrap().len(), 1);
            }
            assert_eq!(asked.load(Ordering::Relaxed), 1);
            drop(open);
            assert_eq!(lookups.find("hangs").await.unwrap()[0], IpAddr::from([127, 0, 0, 9]));
            assert!(lookups.under_way.lock().unwrap().is_empty());
        });
    }

    #[test]
    fn failures_are_told_to_all_and_not_remembered() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let lookups = Lookups::with(move |name| match name {
            "panics" => panic!("in a module of the resolver"),
            "empty" => Ok(Vec::new()),
            _ => {
                count.fetch_add(1, Ordering::Relaxed);
                Err(io::Error::other("no such name"))
            }
        });
        run(async {
            for (name, text) in
                [("x", "no such name"), ("empty", "no address"), ("panics", "panicked")]
            {
                let (first, second) = tokio::join!(lookups.find(name), lookups.find(name));
                for error in [first.unwrap_err(), second.unwrap_err()] {
                    assert!(error.to_string().contains(text), "{error}");
                }
            }
            assert_eq!(asked.load(Ordering::Relaxed), 1);
            assert!(lookups.find("x").await.is_err());
            assert_eq!(asked.load(Ordering::Relaxed), 2);
        });
    }

    /// Reached only when something is wrong.
    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn the_system_knows_this_machine() {
        let found = run(Lookups::new().find("localhost")).unwrap();
        assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
    }
}
