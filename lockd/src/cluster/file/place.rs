//! Where in a file something stands.

use std::ops::Range;
use std::path::Path;

use super::super::ClusterFileError;

/// Turns spans of bytes into lines, columns and fields.
pub(super) struct Places<'a> {
    pub(super) text: &'a str,
    pub(super) path: &'a Path,
}

impl Places<'_> {
    /// A mistake in `field` at `span`.
    pub(super) fn mistake(
        &self,
        span: Range<usize>,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> ClusterFileError {
        let before = self.before(span.start);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        ClusterFileError::Mistake {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            field: field.into(),
            message: message.into(),
        }
    }

    /// A mistake that the parser found: it knows the place, and the field is the one that stands there.
    pub(super) fn syntax(&self, error: &toml::de::Error) -> ClusterFileError {
        let span = error.span().unwrap_or(self.text.len()..self.text.len());
        let message = error.message().replace('\n', ": ");
        self.mistake(span.clone(), self.field_at(span.start), message)
    }

    fn before(&self, end: usize) -> &str {
        let mut end = end.min(self.text.len());
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        &self.text[..end]
    }

    /// The key whose line `at` is in, and the header above it.
    fn field_at(&self, at: usize) -> String {
        let line_start = self.before(at).rfind('\n').map_or(0, |newline| newline + 1);
        let line = self.text[line_start..].lines().next().unwrap_or_default().trim();
        let header = self.text[..line_start].lines().rev().map(str::trim).find(|line| line.starts_with('['));
        let header = header.map(|header| header.split('#').next().unwrap_or_default().trim_end());
        match (line.split_once('=').map(|(key, _)| key.trim()), header) {
            _ if line.starts_with('[') => line.split('#').next().unwrap_or_default().trim_end().to_owned(),
            (Some(key), Some(header)) => format!("{key} in {header}"),
            (Some(key), None) => key.to_owned(),
            (None, Some(header)) => format!("in {header}"),
            (None, None) => "the top of the file".to_owned(),
        }
    }
}
