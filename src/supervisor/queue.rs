//! Who waits for room to make a process, in the order in which they came: a unit that begins again and
//! again has its turn after all that wait already.

use std::collections::{BTreeSet, VecDeque};

use crate::model::InstanceId;

/// Instances that wait, each once.
#[derive(Debug, Default)]
pub(super) struct Queue {
    order: VecDeque<InstanceId>,
    /// The same, to find one.
    members: BTreeSet<InstanceId>,
    /// The one whose turn came last.
    turn: Option<InstanceId>,
}

impl Queue {
    /// Puts one at the end, unless it waits already.
    pub(super) fn push(&mut self, id: InstanceId) {
        if self.members.insert(id.clone()) {
            self.order.push_back(id);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Takes out the one that came first: it is its turn.
    pub(super) fn next(&mut self) -> Option<InstanceId> {
        let id = self.order.pop_front()?;
        self.members.remove(&id);
        self.turn = Some(id.clone());
        Some(id)
    }

    /// Whether one may go before those that wait: nobody does, or it is its turn.
    pub(super) fn lets(&self, id: &InstanceId) -> bool {
        self.is_empty() || self.turn.as_ref() == Some(id)
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
        queue.push(b.clone());
        assert_eq!([queue.next(), queue.next(), queue.next()], [Some(c), Some(b), None]);
    }
}
