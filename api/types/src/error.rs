//! The error of everything that checks what came from outside.

use std::fmt;

/// A field that cannot be accepted: where it is, what is wrong and, after that, what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Dotted path as the API names it, such as `spec.endpoint.ports[1].published_port`.
    pub field: String,
    /// What is wrong and how to cure it, in lower case without a full stop.
    pub problem: String,
}

impl FieldError {
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }

    /// The same error seen from the message that holds the field.
    #[must_use]
    pub fn inside(mut self, outer: &str) -> Self {
        self.field = match self.field.as_str() {
            "" => outer.to_owned(),
            inner if inner.starts_with('[') => format!("{outer}{inner}"),
            inner => format!("{outer}.{inner}"),
        };
        self
    }

    /// The same error seen from the list that holds the item.
    #[must_use]
    pub fn at(self, index: usize) -> Self {
        self.inside(&format!("[{index}]"))
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.field, self.problem)
    }
}

impl std::error::Error for FieldError {}
