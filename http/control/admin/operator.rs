//! What an operator asks and wants: `status` and `retry`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::driver::StorageDir;
use engine::op::{CoreId, StorageHealth};
use engine::ticket::TicketId;
use engine::tickets::TicketError;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{VERSION, refusal};
use crate::control::cores::{CoreAnswer, Cores};
use crate::mail::Mail;
use crate::query::{Asker, Page, Query, Retried, Retry, RetryResult};

/// Answers operators.
#[derive(Debug)]
pub struct Operator {
    cores: Arc<Cores>,
    storage: Arc<StorageDir>,
    started: Instant,
    /// Only one thread at a time looks at the storage: it may hang there.
    looking: Arc<Mutex<()>>,
}

impl Operator {
    pub fn new(cores: Arc<Cores>, storage: Arc<StorageDir>) -> Self {
        Self { cores, storage, started: Instant::now(), looking: Arc::default() }
    }

    /// Where answers of cores arrive.
    pub(in crate::control) fn cores(&self) -> &Arc<Cores> {
        &self.cores
    }

    /// `id`, or `state`, `after` and `limit` say which uploads are listed.
    pub(super) async fn status(&self, request: &Value, listen: &[SocketAddr]) -> Value {
        let query = match read_query(request) {
            Ok(query) => query,
            Err(error) => return refusal(error),
        };
        let question = |number| Mail::Query { asker: Asker::Control(number), query: query.clone() };
        let Some(answers) = self.cores.ask(self.cores.all(), question).await else {
            return refusal(NO_ANSWER);
        };
        let pages = answers.into_iter().filter_map(|it| match it {
            CoreAnswer::Page(page) => Some(page),
            CoreAnswer::Retried(_) => None,
        });
        let page = Page::join(pages.collect(), query.limit);
        if query.only.is_some() && page.uploads.is_empty() {
            return refusal(UNKNOWN);
        }
        let (storage, free_bytes) = self.storage_state().await;
        let mut status = json!({
            "pid": std::process::id(),
            "version": VERSION,
            "uptime_s": self.started.elapsed().as_secs(),
            "listen": listen,
            "storage_dir": self.storage.path(),
            "storage": storage,
            "storage_free_bytes": free_bytes,
        });
        let page = serde_json::to_value(&page).expect("plain data");
        if let (Value::Object(status), Value::Object(page)) = (&mut status, page) {
            status.extend(page);
        }
        status
    }

    /// `id`, or `all` that have failed.
    pub(super) async fn retry(&self, request: &Value) -> Value {
        let result = match (request["id"].as_str(), request["all"].as_bool()) {
            (Some(id), _) => match TicketId::parse(id) {
                Some(id) => self.retry_at(self.cores.owner(id), Retry::One(id)).await,
                None => return refusal(UNKNOWN),
            },
            (None, Some(true)) => self.retry_all().await,
            _ => return refusal("retry needs an id, or all: true"),
        };
        match result {
            Some(Ok(Retried { count, .. })) => json!({ "retried": count }),
            Some(Err(TicketError::Unknown)) => refusal(UNKNOWN),
            Some(Err(_)) => refusal("nothing to retry: no hand-over of this upload has failed"),
            None => refusal(NO_ANSWER),
        }
    }

    async fn retry_all(&self) -> Option<RetryResult> {
        let mut sum = Retried { count: 0, next: None };
        for core in self.cores.all() {
            let mut after = None;
            loop {
                let result = self.retry_at(core, Retry::Failed { after }).await?;
                let Ok(Retried { count, next }) = result else { return Some(result) };
                sum.count += count;
                after = next;
                if after.is_none() {
                    break;
                }
            }
        }
        Some(Ok(sum))
    }

    async fn retry_at(&self, core: CoreId, retry: Retry) -> Option<RetryResult> {
        let wish = |number| Mail::Retry { number, retry };
        let answers = self.cores.ask(std::iter::once(core), wish).await?;
        answers.into_iter().find_map(|it| match it {
            CoreAnswer::Retried(result) => Some(result),
            CoreAnswer::Page(_) => None,
        })
    }

    /// How the storage is, and how much room there is, if it says so soon.
    async fn storage_state(&self) -> (&'static str, Option<u64>) {
        let (storage, looking) = (Arc::clone(&self.storage), Arc::clone(&self.looking));
        let look = tokio::task::spawn_blocking(move || {
            let _guard = looking.try_lock().ok()?;
            Some(storage.state())
        });
        match timeout(STORAGE_TIMEOUT, look).await {
            Ok(Ok(Some(state))) => match state.health {
                StorageHealth::Good => ("good", Some(state.free_bytes)),
                StorageHealth::ReadOnly => ("read_only", Some(state.free_bytes)),
                StorageHealth::Gone => ("gone", None),
            },
            _ => ("unknown", None),
        }
    }
}

/// Numbers may be numbers.
fn read_query(request: &Value) -> Result<Query, String> {
    let limit = request["limit"].as_u64().map(|it| it.to_string());
    let query = Query::parse(|name| match (name, &limit) {
        ("limit", Some(limit)) => Some(limit.as_str()),
        _ => request[name].as_str(),
    })?;
    match request["id"].as_str() {
        None => Ok(query),
        Some(id) => match TicketId::parse(id) {
            Some(id) => Ok(Query { only: Some(id), ..query }),
            None => Err(UNKNOWN.to_owned()),
        },
    }
}

const UNKNOWN: &str = "there is no upload with this id";
const NO_ANSWER: &str = "the server is busy or ends: it does not answer; try again";
const STORAGE_TIMEOUT: Duration = Duration::from_secs(1);
