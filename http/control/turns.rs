//! Whose turn it is: which calls may run, when web apps share the sockets of one thread. Pure.
//!
//! A web app that hangs keeps what it holds until the time-out. So each has a small share; one that
//! was silent has one call at a time, until it speaks; and those that are silent or not known yet
//! leave some of the sockets to those that are known to answer.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Calls that wait for their turn, by host. `C` is a call.
#[derive(Debug)]
pub(super) struct Turns<C> {
    hosts: HashMap<Arc<str>, Host<C>>,
    /// Hosts of each class with a call that may start when there is a socket, the next one first.
    ready: [VecDeque<Arc<str>>; 2],
    /// Hosts without any call, by the order in which they ran out of them.
    idle: BTreeMap<u64, Arc<str>>,
    idle_count: u64,
    active_count: [usize; 2],
    active_max: usize,
}

/// A call that runs, until [`Turns::ended`] takes it back.
#[derive(Debug)]
#[must_use]
pub(super) struct Turn {
    host: Arc<str>,
    class: Class,
}

/// What the end of a call says about its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// 200, and what it should say.
    Taken,
    /// Something else that will not soon change.
    Refused,
    /// It says that it cannot now.
    Busy,
    /// Nothing that was an answer.
    Silent,
}

#[derive(Debug)]
struct Host<C> {
    waiting: VecDeque<(Instant, C)>,
    active_count: usize,
    standing: Standing,
    queued: Option<Class>,
    idle: Option<u64>,
}

/// What is known of a host: how its last call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Unknown,
    Good,
    /// It speaks, but has taken nothing since it was silent or busy.
    Poor,
    Silent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Doubtful,
    Trusted,
}

impl<C> Turns<C> {
    /// `active_max`: how many calls may run at a time, at least 4.
    pub(super) fn new(active_max: usize) -> Self {
        Self {
            hosts: HashMap::new(),
            ready: [VecDeque::new(), VecDeque::new()],
            idle: BTreeMap::new(),
            idle_count: 0,
            active_count: [0; 2],
            active_max,
        }
    }

    /// A call that wants its turn.
    pub(super) fn push(&mut self, now: Instant, host: &str, call: C) {
        let name = match self.hosts.get_key_value(host) {
            Some((name, _)) => Arc::clone(name),
            None => {
                let name: Arc<str> = host.into();
                self.hosts.insert(Arc::clone(&name), Host::new());
                name
            }
        };
        let it = self.hosts.get_mut(&name).expect("just found or made");
        it.waiting.push_back((now, call));
        if let Some(since) = it.idle.take() {
            self.idle.remove(&since);
        }
        self.queue(&name);
    }

    /// The next call that may run. Ask until there is none.
    pub(super) fn next(&mut self) -> Option<(Turn, C)> {
        // What is doubtful goes first, because it never gets the last sockets.
        let class = [Class::Doubtful, Class::Trusted]
            .into_iter()
            .find(|it| self.has_room(*it) && !self.ready[*it as usize].is_empty())?;
        let name = self.ready[class as usize].pop_front()?;
        let host = self.hosts.get_mut(&name).expect("a host with calls is known");
        host.queued = None;
        let (_, call) = host.waiting.pop_front().expect("who is ready has a call");
        host.active_count += 1;
        self.active_count[class as usize] += 1;
        self.queue(&name);
        Some((Turn { host: name, class }, call))
    }

    /// A call has ended. True: its host is back, having been silent or busy.
    pub(super) fn ended(&mut self, turn: Turn, ending: Ending) -> bool {
        self.active_count[turn.class as usize] -= 1;
        let host = self.hosts.get_mut(&turn.host).expect("a host with calls is known");
        host.active_count -= 1;
        let before = host.standing;
        host.standing = match (ending, before) {
            (Ending::Silent, _) => Standing::Silent,
            (Ending::Taken, _) | (Ending::Refused, Standing::Unknown | Standing::Good) => {
                Standing::Good
            }
            (Ending::Busy | Ending::Refused, _) => Standing::Poor,
        };
        self.queue(&turn.host);
        self.rest(&turn.host);
        ending == Ending::Taken && matches!(before, Standing::Poor | Standing::Silent)
    }

    /// A call to `host` that has waited longer than `patience` behind others. When those get no
    /// answer, it is no use to let it wait for more of them.
    pub(super) fn pop_overdue(
        &mut self,
        now: Instant,
        host: &str,
        patience: Duration,
    ) -> Option<C> {
        let it = self.hosts.get_mut(host)?;
        let (since, _) = it.waiting.front()?;
        if now.duration_since(*since) < patience {
            return None;
        }
        let (_, call) = it.waiting.pop_front()?;
        if it.waiting.is_empty() {
            let name = Arc::clone(self.hosts.get_key_value(host).expect("just found").0);
            self.queue(&name);
            self.rest(&name);
        }
        Some(call)
    }

    fn has_room(&self, class: Class) -> bool {
        let doubtful = self.active_count[Class::Doubtful as usize];
        let all = doubtful + self.active_count[Class::Trusted as usize];
        all < self.active_max
            && (class == Class::Trusted
                || doubtful < self.active_max - self.active_max / TRUSTED_SHARE)
    }

    /// Puts a host in the queue of its class if it has a call that may start, and takes it out of
    /// every other.
    fn queue(&mut self, name: &Arc<str>) {
        let host = self.hosts.get_mut(name).expect("a host with calls is known");
        let may_start = host.active_count < host.standing.calls_max() && !host.waiting.is_empty();
        let wanted = may_start.then_some(host.standing.class());
        if host.queued == wanted {
            return;
        }
        if let Some(left) = host.queued {
            self.ready[left as usize].retain(|it| it != name);
        }
        if let Some(class) = wanted {
            self.ready[class as usize].push_back(Arc::clone(name));
        }
        host.queued = wanted;
    }

    /// A host without calls is remembered for a while: only so is one that was silent known as such
    /// at its next call, and one that answered as well.
    fn rest(&mut self, name: &Arc<str>) {
        let host = self.hosts.get_mut(name).expect("a host with calls is known");
        if host.active_count > 0 || !host.waiting.is_empty() {
            return;
        }
        self.idle_count += 1;
        host.idle = Some(self.idle_count);
        self.idle.insert(self.idle_count, Arc::clone(name));
        if self.idle.len() > IDLE_HOSTS_MAX {
            let (_, oldest) = self.idle.pop_first().expect("not empty");
            self.hosts.remove(&oldest);
        }
    }
}

impl Turn {
    pub(super) fn host(&self) -> &Arc<str> {
        &self.host
    }
}

impl<C> Host<C> {
    fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            active_count: 0,
            standing: Standing::Unknown,
            queued: None,
            idle: None,
        }
    }
}

impl Standing {
    fn class(self) -> Class {
        match self {
            Self::Unknown | Self::Silent => Class::Doubtful,
            Self::Good | Self::Poor => Class::Trusted,
        }
    }

    fn calls_max(self) -> usize {
        match self {
            Self::Silent => 1,
            _ => HOST_CALLS_MAX,
        }
    }
}

/// Calls that one host gets at a time.
pub(super) const HOST_CALLS_MAX: usize = 16;
/// One part in so many of all calls is for hosts that are known to answer.
const TRUSTED_SHARE: usize = 4;
/// Hosts without calls that are remembered.
const IDLE_HOSTS_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(active_max: usize) -> (Turns<u32>, Instant) {
        (Turns::new(active_max), Instant::now())
    }

    fn all(turns: &mut Turns<u32>) -> Vec<(Turn, u32)> {
        std::iter::from_fn(|| turns.next()).collect()
    }

    /// Makes hosts known for their answers.
    fn speak(turns: &mut Turns<u32>, now: Instant, host: &str) {
        turns.push(now, host, 0);
        let (turn, _) = turns.next().expect("its turn");
        assert!(!turns.ended(turn, Ending::Taken));
    }

    #[test]
    fn each_host_has_its_share_in_order() {
        let (mut turns, now) = turns(1000);
        for call in 0..40 {
            turns.push(now, "a", call);
        }
        turns.push(now, "b", 100);
        let mut running = all(&mut turns);
        let of_a: Vec<u32> = running.iter().map(|it| it.1).filter(|it| *it < 100).collect();
        assert_eq!(of_a, (0..16).collect::<Vec<_>>());
        assert_eq!(running.len(), 17);
        // Hosts take turns: b did not wait for all of a.
        assert_eq!(running[1].1, 100);
        assert!(!turns.ended(running.remove(0).0, Ending::Taken));
        let next = all(&mut turns);
        assert_eq!(next.iter().map(|it| it.1).collect::<Vec<_>>(), [16]);
    }

    #[test]
    fn a_silent_host_gets_one_call_until_it_speaks() {
        let (mut turns, now) = turns(1000);
        for call in 0..100 {
            turns.push(now, "a", call);
        }
        let mut running = all(&mut turns);
        for (turn, _) in running.drain(..15) {
            assert!(!turns.ended(turn, Ending::Silent));
            assert!(turns.next().is_none(), "others are still running");
        }
        assert!(!turns.ended(running.pop().unwrap().0, Ending::Silent));
        let mut probe = all(&mut turns);
        assert_eq!(probe.len(), 1);
        assert!(turns.ended(probe.pop().unwrap().0, Ending::Taken), "it is back");
        let mut running = all(&mut turns);
        assert_eq!(running.len(), HOST_CALLS_MAX);
        assert!(!turns.ended(running.pop().unwrap().0, Ending::Taken), "it was back before");
    }

    #[test]
    fn a_host_is_back_only_when_it_takes_something() {
        let (mut turns, now) = turns(1000);
        for (ending, is_back) in [
            (Ending::Refused, false),
            (Ending::Taken, false),
            (Ending::Busy, false),
            (Ending::Taken, true),
            (Ending::Silent, false),
            (Ending::Refused, false),
            (Ending::Refused, false),
            (Ending::Taken, true),
            (Ending::Taken, false),
        ] {
            turns.push(now, "a", 0);
            let (turn, _) = turns.next().unwrap();
            assert_eq!(turns.ended(turn, ending), is_back, "{ending:?}");
        }
    }

    #[test]
    fn a_silent_host_is_known_when_it_comes_again() {
        let (mut turns, now) = turns(1000);
        turns.push(now, "a", 0);
        let (turn, _) = turns.next().unwrap();
        turns.ended(turn, Ending::Silent);
        for call in 0..5 {
            turns.push(now, "a", call);
        }
        assert_eq!(all(&mut turns).len(), 1);
    }

    #[test]
    fn the_last_sockets_are_for_hosts_that_answer() {
        let (mut turns, now) = turns(40);
        speak(&mut turns, now, "good");
        for host in 0..1000 {
            for call in 0..20 {
                turns.push(now, &format!("hanging-{host}"), call);
            }
        }
        let hanging = all(&mut turns);
        assert_eq!(hanging.len(), 30);
        for call in 0..20 {
            turns.push(now, "good", call);
        }
        let mut good = all(&mut turns);
        assert_eq!(good.len(), 10);
        assert!(good.iter().all(|(turn, _)| &**turn.host() == "good"));
        // Their ends make room for its other calls, not for those that hang.
        turns.ended(good.pop().unwrap().0, Ending::Taken);
        assert_eq!(&**turns.next().unwrap().0.host(), "good");
        assert!(turns.next().is_none());
    }

    #[test]
    fn a_host_that_begins_to_answer_leaves_the_queue_of_the_doubtful() {
        let (mut turns, now) = turns(8);
        for call in 0..3 {
            turns.push(now, "a", call);
        }
        let mut of_a = all(&mut turns);
        for host in 0..9 {
            turns.push(now, &format!("hanging-{host}"), 0);
        }
        for call in 3..6 {
            turns.push(now, "a", call);
        }
        let _hanging = all(&mut turns);
        turns.ended(of_a.remove(0).0, Ending::Taken);
        let next = all(&mut turns);
        assert!(next.iter().any(|(turn, _)| &**turn.host() == "a"), "{next:?}");
    }

    #[test]
    fn who_waits_behind_silence_is_sent_home() {
        let (mut turns, now) = turns(1000);
        let patience = Duration::from_secs(55);
        let late = now + patience;
        for call in 0..20 {
            turns.push(now, "a", call);
        }
        turns.push(now + Duration::from_secs(1), "a", 20);
        let mut running = all(&mut turns);
        assert_eq!(turns.pop_overdue(late - Duration::from_nanos(1), "a", patience), None);
        turns.ended(running.pop().unwrap().0, Ending::Silent);
        let overdue = |turns: &mut Turns<u32>, now| {
            std::iter::from_fn(|| turns.pop_overdue(now, "a", patience)).collect::<Vec<_>>()
        };
        assert_eq!(overdue(&mut turns, late), [16, 17, 18, 19]);
        assert_eq!(overdue(&mut turns, late + patience), [20]);
        assert_eq!(turns.pop_overdue(late, "b", patience), None);
        for (turn, _) in running {
            turns.ended(turn, Ending::Silent);
        }
        assert!(turns.next().is_none());
        assert_eq!(turns.idle.len(), 1);
    }

    #[test]
    fn hosts_without_calls_are_forgotten_the_oldest_first() {
        let (mut turns, now) = turns(1000);
        for host in 0..3 * IDLE_HOSTS_MAX {
            speak(&mut turns, now, &host.to_string());
        }
        assert_eq!((turns.hosts.len(), turns.idle.len()), (IDLE_HOSTS_MAX, IDLE_HOSTS_MAX));
        assert!(turns.hosts.contains_key("12287") && !turns.hosts.contains_key("0"));
        speak(&mut turns, now, &(2 * IDLE_HOSTS_MAX).to_string());
        speak(&mut turns, now, "new");
        assert!(turns.hosts.contains_key(&*(2 * IDLE_HOSTS_MAX).to_string()), "used meanwhile");
        assert!(turns.ready.iter().all(|it| it.is_empty()));
    }

    /// Whatever happens in whatever order: no limit is exceeded, nobody is forgotten, and no call
    /// waits that could run.
    #[test]
    fn limits_hold_and_nobody_starves() {
        for seed in 1..200_u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut below = |bound: usize| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) as usize % bound
            };
            let (mut turns, now) = turns(4 + below(40));
            let mut running: Vec<(Turn, u32)> = Vec::new();
            let (mut pushed, mut over) = (0, 0);
            for step in 0..3000 {
                if step < 2000 && below(3) > 0 {
                    turns.push(now, &below(8).to_string(), pushed);
                    pushed += 1;
                } else if !running.is_empty() {
                    let (turn, _) = running.swap_remove(below(running.len()));
                    let endings = [Ending::Taken, Ending::Refused, Ending::Busy, Ending::Silent];
                    turns.ended(turn, endings[below(4)]);
                    over += 1;
                }
                if below(20) == 0 {
                    let host = below(8).to_string();
                    over += u32::from(turns.pop_overdue(now, &host, Duration::ZERO).is_some());
                }
                while let Some(it) = turns.next() {
                    running.push(it);
                }
                assert!(running.len() <= turns.active_max);
                assert_eq!(running.len(), turns.active_count.iter().sum::<usize>());
                for (name, host) in &turns.hosts {
                    let active = running.iter().filter(|it| it.0.host() == name).count();
                    assert_eq!(active, host.active_count);
                    assert!(active <= HOST_CALLS_MAX);
                    let may_start = active < host.standing.calls_max() && !host.waiting.is_empty();
                    assert!(!may_start || !turns.has_room(host.standing.class()), "it could run");
                    assert_eq!(host.queued, may_start.then_some(host.standing.class()));
                }
                let queued: usize = turns.ready.iter().map(VecDeque::len).sum();
                assert!(queued <= turns.hosts.len(), "nobody stands there twice");
            }
            while let Some((turn, _)) = running.pop() {
                turns.ended(turn, Ending::Taken);
                over += 1;
                while let Some(it) = turns.next() {
                    running.push(it);
                }
            }
            assert_eq!(over, pushed);
        }
    }
}
