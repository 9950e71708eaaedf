//! Deadlines of many things, cheap to move.
//!
//! Most deadlines are pushed back again and again and never fire. So the queue is lazy: whoever owns
//! a deadline keeps the true time; an entry that fires too early is put back by its owner.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Keys by time. An entry says "look at this key then", no more.
#[derive(Debug)]
pub struct Timers<K> {
    heap: BinaryHeap<Reverse<(Instant, K)>>,
}

impl<K: Ord + Copy> Timers<K> {
    pub fn new() -> Self {
        Self { heap: BinaryHeap::new() }
    }

    /// Ask for `key` to be looked at, at `at`.
    pub fn insert(&mut self, at: Instant, key: K) {
        self.heap.push(Reverse((at, key)));
    }

    /// When the next entry is due.
    pub fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// The next key that is due at `now`. The owner compares its own deadline.
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, key))| key)
    }

    pub fn len(&self) -> usize {
        self.heap.len()
    }

    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

impl<K: Ord + Copy> Default for Timers<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn fires_in_order_and_not_early() {
        let start = Instant::now();
        let at = |it| start + Duration::from_millis(it);
        let mut timers = Timers::new();
        timers.insert(at(30), 'c');
        timers.insert(at(10), 'a');
        timers.insert(at(20), 'b');
        assert_eq!(timers.next(), Some(at(10)));
        assert_eq!(timers.pop_due(at(9)), None);
        assert_eq!(timers.pop_due(at(20)), Some('a'));
        assert_eq!(timers.pop_due(at(20)), Some('b'));
        assert_eq!(timers.pop_due(at(20)), None);
        assert_eq!(timers.len(), 1);
    }
}
