//! How many bytes of all clients together are under way, and whose turn it is to send more.

use std::collections::VecDeque;

/// Who asks first is served first, however little another one wants: nobody starves.
#[derive(Debug)]
pub(crate) struct Turns {
    bytes_max: u64,
    under_way_bytes: u64,
    waiting: VecDeque<(usize, u64)>,
}

impl Turns {
    pub(crate) fn new(bytes_max: Option<u64>) -> Self {
        Self {
            bytes_max: bytes_max.unwrap_or(u64::MAX),
            under_way_bytes: 0,
            waiting: VecDeque::new(),
        }
    }

    /// Whether the client may send so many bytes now. If not, it waits its turn, and
    /// [`next`](Self::next) will name it; it does not ask again before.
    pub(crate) fn ask(&mut self, client: usize, bytes: u64) -> bool {
        if self.waiting.is_empty() && self.fits(bytes) {
            self.under_way_bytes += bytes;
            return true;
        }
        self.waiting.push_back((client, bytes));
        false
    }

    /// So many bytes were acknowledged.
    pub(crate) fn give_back(&mut self, bytes: u64) {
        self.under_way_bytes -= bytes;
    }

    /// Who may send now what it had asked for.
    pub(crate) fn next(&mut self) -> Option<usize> {
        let (client, bytes) = *self.waiting.front()?;
        if !self.fits(bytes) {
            return None;
        }
        self.waiting.pop_front();
        self.under_way_bytes += bytes;
        Some(client)
    }

    fn fits(&self, bytes: u64) -> bool {
        self.under_way_bytes.saturating_add(bytes) <= self.bytes_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_limit_nobody_waits() {
        let mut turns = Turns::new(None);
        assert!((0..1000).all(|client| turns.ask(client, 1 << 50)));
        assert_eq!(turns.next(), None);
    }

    #[test]
    fn who_asks_first_is_served_first_and_small_wishes_do_not_overtake() {
        let mut turns = Turns::new(Some(10));
        assert!(turns.ask(0, 6));
        assert!(!turns.ask(1, 6));
        assert!(!turns.ask(2, 1), "it would fit, but another one was there before");
        assert_eq!(turns.next(), None);
        turns.give_back(6);
        assert_eq!(turns.next(), Some(1));
        assert_eq!(turns.next(), Some(2));
        assert_eq!(turns.next(), None);
        assert!(turns.ask(3, 3));
        assert!(!turns.ask(4, 1));
    }

    #[test]
    fn greedy_clients_share_evenly_and_the_limit_holds() {
        const CLIENTS: usize = 7;
        let mut turns = Turns::new(Some(3 * 100));
        let mut sent = [0u32; CLIENTS];
        let mut under_way = VecDeque::new();
        let mut wishes: Vec<usize> = (0..CLIENTS).collect();
        for _ in 0..CLIENTS * 50 {
            for client in wishes.drain(..) {
                if turns.ask(client, 100) {
                    under_way.push_back(client);
                }
            }
            assert!(under_way.len() <= 3);
            let client = under_way.pop_front().unwrap();
            sent[client] += 1;
            turns.give_back(100);
            while let Some(next) = turns.next() {
                under_way.push_back(next);
            }
            wishes.push(client);
        }
        let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
        assert!(most - least <= 1, "{sent:?}");
    }
}
