//! What a node still has to give, and who claims it.

use skep_types::{GenericResource, Resources};
use std::fmt;

/// What is missing to fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    Cpu { wanted: i64, free: i64 },
    Memory { wanted: i64, free: i64 },
    Generic { kind: String, wanted: i64, free: i64 },
}

/// An amount of memory as people write it.
pub(crate) struct Bytes(pub i64);

impl fmt::Display for Bytes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 10 << 30 => write!(out, "{:.1} GiB", bytes as f64 / f64::from(1u32 << 30)),
            bytes if bytes >= 1 << 20 => write!(out, "{} MiB", bytes >> 20),
            bytes if bytes >= 1 << 10 => write!(out, "{} KiB", bytes >> 10),
            bytes => write!(out, "{bytes} bytes"),
        }
    }
}

/// A number of CPUs as people write it.
pub(crate) struct Cpus(pub i64);

impl fmt::Display for Cpus {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.3}", self.0 as f64 / 1e9);
        out.write_str(text.trim_end_matches('0').trim_end_matches('.'))?;
        out.write_str(" CPUs")
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu { wanted, free } => write!(out, "needs {}, {} free", Cpus(*wanted), Cpus(*free)),
            Self::Memory { wanted, free } => write!(out, "needs {} of memory, {} free", Bytes(*wanted), Bytes(*free)),
            Self::Generic { kind, wanted, free } => write!(out, "needs {wanted} {kind}, {free} free"),
        }
    }
}

/// What is left of a node's resources. Amounts may be negative: tasks that run are counted even if the node shrank.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Free {
    pub nano_cpus: i64,
    pub memory_bytes: i64,
    generic: Vec<GenericFree>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct GenericFree {
    kind: String,
    count: i64,
    /// Free individuals of a named kind, in the node's order.
    named: Vec<String>,
    /// All individuals in the node's order, to put returned ones back in their place.
    order: Vec<String>,
}

impl Free {
    /// Everything a node has.
    #[must_use]
    pub fn of(total: &Resources) -> Self {
        let mut generic = Vec::<GenericFree>::new();
        for resource in &total.generic {
            let (GenericResource::Named { kind, .. } | GenericResource::Discrete { kind, .. }) = resource;
            let index = generic.iter().position(|free| free.kind == *kind).unwrap_or_else(|| {
                generic.push(GenericFree { kind: kind.clone(), count: 0, named: Vec::new(), order: Vec::new() });
                generic.len() - 1
            });
            match resource {
                GenericResource::Named { value, .. } => {
                    generic[index].named.push(value.clone());
                    generic[index].order.push(value.clone());
                }
                GenericResource::Discrete { value, .. } => generic[index].count = generic[index].count.saturating_add(*value),
            }
        }
        Self { nano_cpus: total.nano_cpus, memory_bytes: total.memory_bytes, generic }
    }

    fn available(&self, kind: &str) -> i64 {
        self.generic.iter().find(|free| free.kind == kind).map_or(0, |free| free.count.saturating_add(free.named.len() as i64))
    }

    /// The first thing that is missing for `wanted`, if any. Only counts can be asked for, not individuals.
    ///
    /// # Errors
    /// [`Lack`] says what and how much.
    pub fn check(&self, wanted: &Resources) -> Result<(), Lack> {
        if wanted.nano_cpus > 0 && wanted.nano_cpus > self.nano_cpus {
            return Err(Lack::Cpu { wanted: wanted.nano_cpus, free: self.nano_cpus.max(0) });
        }
        if wanted.memory_bytes > 0 && wanted.memory_bytes > self.memory_bytes {
            return Err(Lack::Memory { wanted: wanted.memory_bytes, free: self.memory_bytes.max(0) });
        }
        for resource in &wanted.generic {
            let (kind, count, fits) = match resource {
                GenericResource::Discrete { kind, value } => (kind, *value, *value <= self.available(kind)),
                GenericResource::Named { kind, .. } => (kind, 1, false),
            };
            if !fits {
                return Err(Lack::Generic { kind: kind.clone(), wanted: count, free: self.available(kind) });
            }
        }
        Ok(())
    }

    /// Takes `wanted` away and says which individuals the task gets.
    ///
    /// # Errors
    /// [`Lack`] if it does not fit; nothing is taken then.
    pub fn claim(&mut self, wanted: &Resources) -> Result<Vec<GenericResource>, Lack> {
        self.check(wanted)?;
        self.nano_cpus = self.nano_cpus.saturating_sub(wanted.nano_cpus.max(0));
        self.memory_bytes = self.memory_bytes.saturating_sub(wanted.memory_bytes.max(0));
        let mut given = Vec::new();
        for resource in &wanted.generic {
            let GenericResource::Discrete { kind, value } = resource else { continue };
            let Some(free) = self.generic.iter_mut().find(|free| free.kind == *kind) else { continue };
            if free.order.is_empty() {
                free.count -= value;
                given.push(resource.clone());
            } else {
                let taken = free.named.drain(..usize::try_from(*value).unwrap_or(0).min(free.named.len()));
                given.extend(taken.map(|value| GenericResource::Named { kind: kind.clone(), value }));
            }
        }
        Ok(given)
    }

    /// The node changed from having `before` to having `after`; what is claimed stays claimed.
    pub fn resize(&mut self, before: &Resources, after: &Resources) {
        self.nano_cpus = self.nano_cpus.saturating_add(after.nano_cpus.saturating_sub(before.nano_cpus));
        self.memory_bytes = self.memory_bytes.saturating_add(after.memory_bytes.saturating_sub(before.memory_bytes));
        let (old, mut new) = (Self::of(before), Self::of(after));
        for claimed in &self.generic {
            let had = old.generic.iter().find(|free| free.kind == claimed.kind);
            if let (Some(had), Some(new)) = (had, new.generic.iter_mut().find(|free| free.kind == claimed.kind)) {
                new.count -= had.count.saturating_sub(claimed.count);
                new.named.retain(|value| claimed.named.contains(value) || !had.order.contains(value));
            }
        }
        self.generic = new.generic;
    }

    /// Counts a task that is there already, whether it fits or not.
    pub fn take(&mut self, wanted: &Resources, given: &[GenericResource]) {
        self.nano_cpus = self.nano_cpus.saturating_sub(wanted.nano_cpus.max(0));
        self.memory_bytes = self.memory_bytes.saturating_sub(wanted.memory_bytes.max(0));
        for resource in given {
            match resource {
                GenericResource::Named { kind, value } => {
                    if let Some(free) = self.generic.iter_mut().find(|free| free.kind == *kind) {
                        free.named.retain(|named| named != value);
                    }
                }
                GenericResource::Discrete { kind, value } => {
                    if let Some(free) = self.generic.iter_mut().find(|free| free.kind == *kind) {
                        free.count = free.count.saturating_sub(*value);
                    }
                }
            }
        }
    }

    /// Gives back what [`Free::take`] or [`Free::claim`] took.
    pub fn give_back(&mut self, wanted: &Resources, given: &[GenericResource]) {
        self.nano_cpus = self.nano_cpus.saturating_add(wanted.nano_cpus.max(0));
        self.memory_bytes = self.memory_bytes.saturating_add(wanted.memory_bytes.max(0));
        for resource in given {
            match resource {
                GenericResource::Named { kind, value } => {
                    if let Some(free) = self.generic.iter_mut().find(|free| free.kind == *kind)
                        && free.order.contains(value)
                        && !free.named.contains(value)
                    {
                        free.named.push(value.clone());
                        let order = &free.order;
                        free.named.sort_by_key(|named| order.iter().position(|value| value == named));
                    }
                }
                GenericResource::Discrete { kind, value } => {
                    if let Some(free) = self.generic.iter_mut().find(|free| free.kind == *kind) {
                        free.count = free.count.saturating_add(*value);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpus() -> Resources {
        let named = |value: &str| GenericResource::Named { kind: "gpu".into(), value: value.into() };
        Resources { nano_cpus: 2_000_000_000, memory_bytes: 1 << 30, generic: vec![named("b"), named("a"), named("c")] }
    }

    fn wants(count: i64) -> Resources {
        Resources { generic: vec![GenericResource::Discrete { kind: "gpu".into(), value: count }], ..Resources::default() }
    }

    #[test]
    fn individuals_are_given_in_the_nodes_order_and_return_to_their_place() {
        let mut free = Free::of(&gpus());
        let first = free.claim(&wants(2)).expect("fits");
        let names: Vec<_> =
            first.iter().map(|given| matches!(given, GenericResource::Named { value, .. } if value == "b" || value == "a")).collect();
        assert_eq!(names, [true, true]);
        assert_eq!(free.claim(&wants(2)), Err(Lack::Generic { kind: "gpu".into(), wanted: 2, free: 1 }));
        free.give_back(&wants(2), &first);
        assert_eq!(free, Free::of(&gpus()));
    }

    #[test]
    fn what_is_missing_is_said_in_peoples_units() {
        let free = Free::of(&gpus());
        let wanted = Resources { memory_bytes: 2 << 30, ..Resources::default() };
        assert_eq!(free.check(&wanted).expect_err("too much").to_string(), "needs 2048 MiB of memory, 1024 MiB free");
        let wanted = Resources { nano_cpus: 2_500_000_000, ..Resources::default() };
        assert_eq!(free.check(&wanted).expect_err("too much").to_string(), "needs 2.5 CPUs, 2 CPUs free");
    }
}
