//! `secret create` and `config create`, and the filters of their lists.

use super::values::pair;
use clap::Args;
use skep_types::{Annotations, Driver, Labels};

/// Flags of both.
#[derive(Debug, Default, Args)]
pub struct PayloadFlags {
    /// Label
    #[arg(long, short = 'l', value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// golang: placeholders such as {{.Node.Hostname}} and {{env "NAME"}} are filled in for each task
    #[arg(long, value_name = "DRIVER", value_parser = ["golang"])]
    template_driver: Option<String>,
}

impl PayloadFlags {
    pub fn annotations(&self, name: String) -> Annotations {
        Annotations { name, labels: self.label.iter().cloned().collect(), ..Annotations::default() }
    }

    pub fn templating(&self) -> Option<Driver> {
        self.template_driver.clone().map(|name| Driver { name, ..Driver::default() })
    }
}

/// One `--filter` of `secret ls` or `config ls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PayloadFilter {
    /// Its beginning.
    Id(String),
    /// Its beginning.
    Name(String),
    Label(String, String),
}

pub fn payload_filter(text: &str) -> Result<PayloadFilter, String> {
    let known = "id, name, label";
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?}: write KEY=VALUE with one of {known}"))?;
    Ok(match key.trim() {
        "id" => PayloadFilter::Id(value.into()),
        "name" => PayloadFilter::Name(value.into()),
        "label" => pair(value).map(|(key, value)| PayloadFilter::Label(key, value))?,
        other => return Err(format!("{other:?} is not a filter of secrets and configs; use {known}")),
    })
}

/// The same, sorted out as the manager wants it: ids and names widen, labels narrow.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PayloadFilters {
    pub ids: Vec<String>,
    pub names: Vec<String>,
    pub labels: Labels,
}

impl PayloadFilters {
    pub fn of(wanted: &[PayloadFilter]) -> Self {
        let mut filters = Self::default();
        for filter in wanted.iter().cloned() {
            match filter {
                PayloadFilter::Id(prefix) => filters.ids.push(prefix),
                PayloadFilter::Name(prefix) => filters.names.push(prefix),
                PayloadFilter::Label(key, value) => filters.labels.extend([(key, value)]),
            }
        }
        filters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_those_of_docker() {
        let filters: Vec<_> = ["name=db", "id=ab", "label=tier=front", "label=old"].map(|text| payload_filter(text).unwrap()).into();
        let labels = [("tier".to_owned(), "front".to_owned()), ("old".to_owned(), String::new())].into();
        assert_eq!(PayloadFilters::of(&filters), PayloadFilters { ids: vec!["ab".into()], names: vec!["db".into()], labels });
        for wrong in ["name", "driver=x", "label==x"] {
            assert!(payload_filter(wrong).is_err(), "{wrong}");
        }
    }
}
