//! Who waits for room to make a process, in the order in which they came: a unit that begins again and
//! again has its turn after all that wait already. Who was let in has room for its next process until
//! it has made that: a run does not begin, and then wait.

use std::collections::{BTreeSet, VecDeque};

use crate::model::InstanceId;

/// Instances that wait, each once, and those whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Queue {
    order: VecDeque<InstanceId>,
    /// The same, to find one.
    members: BTreeSet<InstanceId>,
    /// Who was let in, and has not made its process.
    admitted: BTreeSet<InstanceId>,
}

impl Queue {
    /// Puts one at the end, unless it waits already.
    pub(super) fn push(&mut self, id: InstanceId) {
        self.admitted.remove(&id);
        if self.members.insert(id.clone()) {
            self.order.push_back(id);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Takes out the one that came first, and lets it in.
    pub(super) fn next(&mut self) -> Option<InstanceId> {
        let id = self.order.pop_front()?;
        self.members.remove(&id);
        self.admitted.insert(id.clone());
        Some(id)
    }

    /// Whether one may go before those that wait: nobody does, or it was let in.
    pub(super) fn lets(&self, id: &InstanceId) -> bool {
        self.is_empty() || self.admitted.contains(id)
    }

    /// Lets one in that need not wait.
    pub(super) fn admit(&mut self, id: &InstanceId) {
        self.admitted.insert(id.clone());
    }

    /// For how many others than this one there must be room.
    pub(super) fn promised(&self, but: Option<&InstanceId>) -> usize {
        let own = but.is_some_and(|id| self.admitted.contains(id));
        self.admitted.len() - usize::from(own)
    }

    /// One that was let in has made its process.
    pub(super) fn done(&mut self, id: &InstanceId) {
        self.admitted.remove(id);
    }

    /// Whoever was let in and made no process needs none.
    pub(super) fn expire(&mut self) {
        self.admitted.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::UnitName;

    #[test]
    fn who_comes_again_has_its_turn_after_those_that_wait() {
        let [a, b, c] =
            ["a", "b", "c"].map(|name| InstanceId::single(&UnitName::parse(name).unwrap()));
        let mut queue = Queue::default();
        assert!(queue.lets(&a), "nobody waits");
        for id in [&b, &c, &b] {
            queue.push(id.clone());
        }
        assert!(!queue.lets(&a));
        assert_eq!(queue.next().as_ref(), Some(&b));
        assert!(queue.lets(&b) && !queue.lets(&a), "it is the turn of b");
        assert_eq!((queue.promised(None), queue.promised(Some(&b))), (1, 0));
        queue.push(b.clone());
        assert_eq!(queue.promised(None), 0, "it waits again");
        assert_eq!([queue.next(), queue.next(), queue.next()], [Some(c), Some(b), None]);
    }
}
