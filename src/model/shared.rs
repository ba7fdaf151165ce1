//! A part of a spec, of what is known about a run or of the graph that is the same for most: these share
//! one, so that a unit costs what it says.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, OnceLock};
use std::{fmt, ptr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::logs::Logs;
use super::name::UnitName;
use super::outcome::ExitMatch;
use super::process::{EnvFile, InheritEnv, Limit, Ready, Resource, Stdin};
use super::relations::Relations;
use super::restart::Restart;
use super::run::Words;
use super::socket::{Accept, Bound};
use super::spec::{Conditions, EndAction, Hooks, Instances};
use super::stop::Stop;
use super::template::Template;
use super::time::Monotonic;

/// What has a form that most share.
pub trait Common: Clone + PartialEq + 'static {
    /// That form.
    fn common() -> &'static Arc<Self>;
}

/// Each type with its common form, which is that of every part of this type.
macro_rules! common {
    ($($part:ty => $form:expr),+ $(,)?) => {
        $(impl Common for $part {
            fn common() -> &'static Arc<Self> {
                static COMMON: OnceLock<Arc<$part>> = OnceLock::new();
                COMMON.get_or_init(|| Arc::new($form))
            }
        })+
    };
}

common! {
    Conditions => Conditions::default(),
    EndAction => EndAction::None,
    Hooks => Hooks::default(),
    InheritEnv => InheritEnv::All,
    Instances => Instances::Count(1),
    Logs => Logs::default(),
    Ready => Ready::Started,
    Relations => Relations::default(),
    Restart => Restart::default(),
    Stdin => Stdin::Null,
    Stop => Stop::default(),
    Words => Words::default(),
    BTreeMap<Resource, Limit> => BTreeMap::new(),
    BTreeMap<String, String> => BTreeMap::new(),
    BTreeMap<String, Template> => BTreeMap::new(),
    Vec<Bound> => Vec::new(),
    Vec<EnvFile> => Vec::new(),
    Vec<ExitMatch> => vec![ExitMatch::Code(0)],
    Vec<String> => Vec::new(),
    Vec<UnitName> => Vec::new(),
    Vec<(UnitName, Accept)> => Vec::new(),
    VecDeque<Monotonic> => VecDeque::new(),
}

/// A value that is shared until it is changed; its JSON is that of the value.
#[derive(Clone)]
pub struct Shared<T>(Arc<T>);

impl<T: Common> Shared<T> {
    /// Whether it is as most are.
    pub fn is_common(this: &Self) -> bool {
        *this == Self::default()
    }
}

impl<T: Common> From<T> for Shared<T> {
    fn from(value: T) -> Self {
        let common = T::common();
        Self(if value == **common { Arc::clone(common) } else { Arc::new(value) })
    }
}

impl<T: Common> Default for Shared<T> {
    /// The common form.
    fn default() -> Self {
        Self(Arc::clone(T::common()))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

#[expect(clippy::into_iter_without_iter, reason = "`iter` is that of the value")]
impl<'a, T> IntoIterator for &'a Shared<T>
where
    &'a T: IntoIterator,
{
    type Item = <&'a T as IntoIterator>::Item;
    type IntoIter = <&'a T as IntoIterator>::IntoIter;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<T: PartialEq> PartialEq<T> for Shared<T> {
    fn eq(&self, other: &T) -> bool {
        *self.0 == *other
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        ptr::eq(&raw const *self.0, &raw const *other.0) || self.0 == other.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: Serialize> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Common + Deserialize<'de>> Deserialize<'de> for Shared<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Instance, Span, Spec};

    #[test]
    fn what_is_left_as_it_is_is_shared_also_when_it_was_saved() {
        let spec = Spec::default();
        let json = serde_json::to_string(&spec).unwrap();
        let mut other: Spec = serde_json::from_str(&json).unwrap();
        let is_shared =
            |spec: &Spec| ptr::eq(&raw const *spec.restart, Arc::as_ptr(Restart::common()));
        assert!(is_shared(&spec) && is_shared(&other));
        other.restart.delay = Span::seconds(7);
        assert!(!is_shared(&other) && other != spec);
        assert_eq!(spec.restart.delay, Restart::default().delay, "nobody else's is changed");
        other.restart = spec.restart.clone();
        assert_eq!(other, spec);
    }

    #[test]
    fn a_unit_costs_what_it_says() {
        // A thousand units are a thousand of each. Before what most leave as it is was shared, these were
        // 1,544 and 688 bytes.
        let (spec, facts) = (size_of::<Spec>(), size_of::<Instance>());
        assert!(spec <= 416 && facts <= 432, "{spec}, {facts}");
    }
}
