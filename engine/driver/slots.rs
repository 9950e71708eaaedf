//! A table whose free slots are used again.

use std::rc::Rc;

/// Values by slot number.
#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Vec<Option<Rc<T>>>,
    free: Vec<u32>,
}

impl<T> Slots<T> {
    pub(super) fn insert(&mut self, value: Rc<T>) -> u32 {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(value);
                slot
            }
            None => {
                self.slots.push(Some(value));
                u32::try_from(self.slots.len() - 1).expect("there are fewer descriptors")
            }
        }
    }

    /// # Panics
    /// If the slot is empty.
    pub(super) fn at(&self, slot: u32) -> &Rc<T> {
        self.slots[slot as usize].as_ref().expect("the slot is in use")
    }

    /// # Panics
    /// If the slot is empty.
    pub(super) fn remove(&mut self, slot: u32) -> Rc<T> {
        let value = self.slots[slot as usize].take().expect("the slot is in use");
        self.free.push(slot);
        value
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_free_slots_again() {
        let mut slots = Slots::default();
        let [first, second] = ["a", "b"].map(|it| slots.insert(Rc::new(it)));
        assert_eq!((first, second), (0, 1));
        assert_eq!(*slots.remove(first), "a");
        assert_eq!(slots.insert(Rc::new("c")), first);
        assert_eq!((**slots.at(first), **slots.at(second)), ("c", "b"));
    }
}
