//! The tickets that the demo's pages use, each with its secret.

use std::collections::{HashMap, VecDeque};

/// Remembers the newest [`TICKETS_MAX`] tickets.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    known: HashMap<String, Ticket>,
    /// In the order in which they were made.
    order: VecDeque<String>,
}

#[derive(Debug)]
struct Ticket {
    secret: String,
    /// Its file has been taken. A callback may come twice, for example when our answer was lost.
    done: bool,
}

/// What to do about a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Take,
    DoneBefore,
    /// Not ours, or not from our server.
    Refuse,
}

impl Tickets {
    pub(super) fn add(&mut self, id: String, secret: String) {
        if self.order.len() == TICKETS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(id.clone());
        self.known.insert(id, Ticket { secret, done: false });
    }

    pub(super) fn check(&self, id: &str, secret: &str) -> Verdict {
        match self.known.get(id) {
            Some(ticket) if ticket.secret == secret => {
                if ticket.done {
                    Verdict::DoneBefore
                } else {
                    Verdict::Take
                }
            }
            _ => Verdict::Refuse,
        }
    }

    pub(super) fn set_done(&mut self, id: &str) {
        if let Some(ticket) = self.known.get_mut(id) {
            ticket.done = true;
        }
    }
}

const TICKETS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_with_its_secret_and_only_once() {
        let mut tickets = Tickets::default();
        tickets.add("a".to_owned(), "secret".to_owned());
        assert_eq!(tickets.check("a", "secret"), Verdict::Take);
        assert_eq!(tickets.check("a", ""), Verdict::Refuse);
        assert_eq!(tickets.check("a", "other"), Verdict::Refuse);
        assert_eq!(tickets.check("b", "secret"), Verdict::Refuse);
        tickets.set_done("a");
        assert_eq!(tickets.check("a", "secret"), Verdict::DoneBefore);
        assert_eq!(tickets.check("a", "other"), Verdict::Refuse);
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut tickets = Tickets::default();
        for number in 0..=TICKETS_MAX {
            tickets.add(number.to_string(), "s".to_owned());
        }
        assert_eq!(tickets.check("0", "s"), Verdict::Refuse);
        assert_eq!(tickets.check("1", "s"), Verdict::Take);
        assert_eq!((tickets.known.len(), tickets.order.len()), (TICKETS_MAX, TICKETS_MAX));
    }
}
