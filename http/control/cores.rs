//! Asking cores, from the control thread: mail goes out with a number, answers come back with it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use engine::op::CoreId;
use engine::ticket::TicketId;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::time::timeout;

use crate::mail::Mail;
use crate::query::{Asker, Page, RetryResult};

/// The way to all cores.
pub struct Cores {
    count: u16,
    post: Box<dyn Fn(CoreId, Mail) + Send + Sync>,
    waiting: Mutex<Waiting>,
}

/// What a core has answered.
#[derive(Debug)]
pub(super) enum CoreAnswer {
    Page(Page),
    Retried(RetryResult),
}

/// Who waits for answers.
#[derive(Debug, Default)]
struct Waiting {
    number_next: u64,
    senders: HashMap<u64, UnboundedSender<CoreAnswer>>,
}

/// Nobody waits any more when this is gone.
struct Place<'c> {
    cores: &'c Cores,
    number: u64,
}

impl Cores {
    pub fn new(count: u16, post: impl Fn(CoreId, Mail) + Send + Sync + 'static) -> Self {
        Self { count, post: Box::new(post), waiting: Mutex::default() }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = CoreId> + use<> {
        (0..self.count).map(CoreId)
    }

    pub(super) fn owner(&self, id: TicketId) -> CoreId {
        id.owner(self.count)
    }

    /// Sends each of `to` a mail with the same number and waits for all answers. `None`: a core
    /// does not answer, because it ends or because its disk hangs.
    pub(super) async fn ask(
        &self,
        to: impl Iterator<Item = CoreId>,
        mail: impl Fn(u64) -> Mail,
    ) -> Option<Vec<CoreAnswer>> {
        self.ask_within(ANSWER_TIMEOUT, to, mail).await
    }

    async fn ask_within(
        &self,
        patience: Duration,
        to: impl Iterator<Item = CoreId>,
        mail: impl Fn(u64) -> Mail,
    ) -> Option<Vec<CoreAnswer>> {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let place = self.enter(sender);
        let mut count = 0;
        for core in to {
            (self.post)(core, mail(place.number));
            count += 1;
        }
        let mut answers = Vec::new();
        let all = async {
            while answers.len() < count {
                answers.push(receiver.recv().await?);
            }
            Some(())
        };
        timeout(patience, all).await.ok()??;
        Some(answers)
    }

    /// False: it is no answer.
    pub(super) fn on_mail(&self, mail: Mail) -> bool {
        let (number, answer) = match mail {
            Mail::QueryAnswer { asker: Asker::Control(number), page } => {
                (number, CoreAnswer::Page(page))
            }
            Mail::RetryAnswer { number, result } => (number, CoreAnswer::Retried(result)),
            _ => return false,
        };
        let waiting = self.waiting.lock().expect("nothing panics with it");
        if let Some(sender) = waiting.senders.get(&number) {
            let _ = sender.send(answer);
        }
        true
    }

    fn enter(&self, sender: UnboundedSender<CoreAnswer>) -> Place<'_> {
        let mut waiting = self.waiting.lock().expect("nothing panics with it");
        let number = waiting.number_next;
        waiting.number_next += 1;
        waiting.senders.insert(number, sender);
        Place { cores: self, number }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.cores.waiting.lock().expect("nothing panics with it");
        waiting.senders.remove(&self.number);
    }
}

impl fmt::Debug for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cores").field("count", &self.count).finish_non_exhaustive()
    }
}

/// Cores answer within a turn of their loop.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::query::{CoreSummary, Query, Totals};

    fn page(core: CoreId) -> Page {
        let cores = vec![CoreSummary::new(core, 0, 0)];
        Page { uploads: Vec::new(), next: None, totals: Totals::default(), cores }
    }

    fn runtime() -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().build().unwrap()
    }

    fn question(number: u64) -> Mail {
        Mail::Query { asker: Asker::Control(number), query: Query::new() }
    }

    #[test]
    fn everybody_gets_the_answers_to_his_own_question() {
        runtime().block_on(async {
            let (sender, mails) = channel();
            let cores = Arc::new(Cores::new(2, move |core, mail| {
                sender.send((core, mail)).unwrap();
            }));
            let asked = |cores: &Arc<Cores>| {
                let cores = Arc::clone(cores);
                tokio::spawn(async move { cores.ask(cores.all(), question).await })
            };
            let (first, second) = (asked(&cores), asked(&cores));
            tokio::task::yield_now().await;
            let mut mails: Vec<_> = mails.try_iter().collect();
            assert_eq!(mails.len(), 4);
            // In another order than asked.
            mails.reverse();
            for (core, mail) in mails {
                let Mail::Query { asker, .. } = mail else { panic!() };
                assert!(cores.on_mail(Mail::QueryAnswer { asker, page: page(core) }));
            }
            for asked in [first, second] {
                let answers = asked.await.unwrap().unwrap();
                let cores = answers.iter().map(|it| match it {
                    CoreAnswer::Page(page) => page.cores[0].core,
                    CoreAnswer::Retried(_) => panic!(),
                });
                assert_eq!(cores.collect::<Vec<_>>(), [1, 0]);
            }
            assert!(cores.waiting.lock().unwrap().senders.is_empty());
        });
    }

    #[test]
    fn a_core_that_does_not_answer_is_not_waited_for_for_ever() {
        runtime().block_on(async {
            let cores = Cores::new(2, |_, _| {});
            let patience = Duration::from_millis(1);
            assert!(cores.ask_within(patience, cores.all(), question).await.is_none());
            // Its answer comes when nobody waits any more.
            let asker = Asker::Control(0);
            assert!(cores.on_mail(Mail::QueryAnswer { asker, page: page(CoreId(0)) }));
            assert!(!cores.on_mail(Mail::Stop));
        });
    }
}
