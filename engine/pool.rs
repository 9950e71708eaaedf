//! Leases of a core's memory: a buddy allocator that never grows.
//!
//! Large leases while memory is plenty, small ones when many uploads share it, and neighbours join
//! again when they are given back. The lowest free address is leased first, so that a lightly
//! loaded core keeps using the same few pages.

use std::collections::BTreeSet;

use crate::buffer::Slice;

/// Which parts of a region of memory are leased. It holds addresses, not the memory.
#[derive(Debug)]
pub struct Pool {
    region: Slice,
    lease_bytes_min: u32,
    /// Free runs by order: `free[n]` holds the starts (in smallest leases) of runs of `2^n`.
    free: Vec<BTreeSet<u32>>,
    /// For each smallest lease: the order of the lease that begins there, if one does.
    leased: Vec<Option<u8>>,
    leased_bytes: u32,
}

impl Pool {
    /// Leases have between `lease_bytes_min` and `lease_bytes_max` bytes, both powers of two. What
    /// remains of `region` beyond a multiple of the smallest lease is not used.
    pub fn new(region: Slice, lease_bytes_min: u32, lease_bytes_max: u32) -> Self {
        assert!(lease_bytes_min.is_power_of_two() && lease_bytes_max.is_power_of_two());
        assert!(lease_bytes_min <= lease_bytes_max);
        assert_eq!(region.start % lease_bytes_min, 0);
        let order_count = (lease_bytes_max / lease_bytes_min).ilog2() as usize + 1;
        let unit_count = region.length / lease_bytes_min;
        let mut pool = Self {
            region,
            lease_bytes_min,
            free: vec![BTreeSet::new(); order_count],
            leased: vec![None; unit_count as usize],
            leased_bytes: 0,
        };
        let mut unit = 0;
        while unit < unit_count {
            let fits = (0..order_count as u32)
                .rev()
                .find(|order| unit % (1 << order) == 0 && unit + (1 << order) <= unit_count);
            let order = fits.expect("a single unit always fits");
            pool.free[order as usize].insert(unit);
            unit += 1 << order;
        }
        pool
    }

    /// Leases `wanted_bytes` (rounded up to a power of two and into the range), or less if only
    /// less is free in one piece. `None`: nothing is free.
    pub fn lease(&mut self, wanted_bytes: u32) -> Option<Slice> {
        let order_max = self.free.len() - 1;
        let wanted_bytes =
            wanted_bytes.clamp(self.lease_bytes_min, self.lease_bytes_min << order_max);
        let wanted = (wanted_bytes.next_power_of_two() / self.lease_bytes_min).ilog2() as usize;
        let larger = (wanted..=order_max).find(|it| !self.free[*it].is_empty());
        let found = larger.or_else(|| (0..wanted).rev().find(|it| !self.free[*it].is_empty()))?;
        let unit = self.free[found].pop_first().expect("not empty");
        // Split until it fits; the upper halves stay free.
        let order = found.min(wanted);
        for half in (order..found).rev() {
            self.free[half].insert(unit + (1 << half));
        }
        assert!(self.leased[unit as usize].is_none(), "leased twice");
        self.leased[unit as usize] = Some(order as u8);
        let length = self.lease_bytes_min << order;
        self.leased_bytes += length;
        Some(Slice { start: self.region.start + unit * self.lease_bytes_min, length })
    }

    /// Gives a lease back, exactly as it was leased.
    pub fn release(&mut self, lease: Slice) {
        let mut unit = (lease.start - self.region.start) / self.lease_bytes_min;
        let order = self.leased[unit as usize].take().expect("only a lease is given back");
        let mut order = usize::from(order);
        assert_eq!(lease.length, self.lease_bytes_min << order, "a lease is given back whole");
        self.leased_bytes -= lease.length;
        while order + 1 < self.free.len() && self.free[order].remove(&(unit ^ (1 << order))) {
            unit &= !(1 << order);
            order += 1;
        }
        self.free[order].insert(unit);
    }

    pub fn leased_bytes(&self) -> u32 {
        self.leased_bytes
    }

    /// All bytes that can be leased.
    pub fn capacity_bytes(&self) -> u32 {
        self.leased.len() as u32 * self.lease_bytes_min
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REGION: Slice = Slice { start: 1 << 20, length: (2 << 20) + 5000 };

    fn pool() -> Pool {
        Pool::new(REGION, 64 << 10, 1 << 20)
    }

    #[test]
    fn splits_and_joins() {
        let mut pool = pool();
        let small = pool.lease(1).unwrap();
        assert_eq!(small, Slice { start: REGION.start, length: 64 << 10 });
        let large = pool.lease(1 << 20).unwrap();
        assert_eq!(large.length, 1 << 20);
        pool.release(small);
        assert_eq!(pool.lease(u32::MAX).unwrap().length, 1 << 20);
        assert_eq!(pool.lease(1), None);
        assert_eq!(pool.leased_bytes(), pool.capacity_bytes());
    }

    #[test]
    fn gives_less_when_only_less_is_left() {
        let mut pool = pool();
        let _first = pool.lease(1 << 20).unwrap();
        let _second = pool.lease(256 << 10).unwrap();
        assert_eq!(pool.lease(1 << 20).unwrap().length, 512 << 10);
    }

    #[test]
    #[should_panic(expected = "only a lease")]
    fn a_lease_is_given_back_once() {
        let mut pool = pool();
        let lease = pool.lease(1).unwrap();
        pool.release(lease);
        pool.release(lease);
    }

    proptest! {
        /// Leases never overlap, stay inside, and everything joins again at the end.
        #[test]
        fn leases_are_disjoint(steps in prop::collection::vec((any::<bool>(), 0u32..2 << 20), 0..200)) {
            let mut pool = pool();
            let mut held: Vec<Slice> = Vec::new();
            for (take, number) in steps {
                if take {
                    let Some(lease) = pool.lease(number) else {
                        prop_assert_eq!(pool.leased_bytes(), pool.capacity_bytes());
                        continue;
                    };
                    prop_assert!(lease.start >= REGION.start);
                    prop_assert!(lease.start + lease.length <= REGION.start + REGION.length);
                    for other in &held {
                        let apart = lease.start + lease.length <= other.start
                            || other.start + other.length <= lease.start;
                        prop_assert!(apart);
                    }
                    held.push(lease);
                } else if !held.is_empty() {
                    pool.release(held.swap_remove(number as usize % held.len()));
                }
            }
            for lease in held {
                pool.release(lease);
            }
            prop_assert_eq!(pool.leased_bytes(), 0);
            prop_assert_eq!(pool.lease(1 << 20).unwrap().length, 1 << 20);
            prop_assert_eq!(pool.lease(1 << 20).unwrap().length, 1 << 20);
        }
    }
}
