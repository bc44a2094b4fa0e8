//! What is said to the person who started the program. Nobody may be listening any more (`csvfs status | head`, a mount
//! whose starter has gone): that ends nothing, least of all a mount.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};

/// Prints a line to standard output.
macro_rules! say {
    ($($words:tt)*) => { $crate::say::line(format_args!($($words)*)) };
}

/// Prints a line to standard error.
macro_rules! complain {
    ($($words:tt)*) => { $crate::say::error(format_args!("{}\n", format_args!($($words)*))) };
}

/// Prints a line to standard output.
pub fn line(text: Arguments<'_>) {
    let mut output = io::stdout().lock();
    let said = writeln!(output, "{text}").and_then(|()| output.flush());
    if let Err(failure) = said
        && failure.kind() != ErrorKind::BrokenPipe
    {
        error(format_args!("csvfs: standard output: {failure}\n"));
    }
}

/// An error and its causes, each said once: some errors tell their cause themselves.
pub fn with_causes(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |said, cause| match cause.to_string() {
        cause if said.is_empty() => cause,
        cause if said.contains(&cause) => said,
        cause => format!("{said}: {cause}"),
    })
}

/// Prints to standard error as it is.
pub fn error(text: Arguments<'_>) {
    // There is nobody left to tell.
    let _ = io::stderr().write_fmt(text);
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    #[test]
    fn each_cause_is_said_once() {
        let refused = || std::io::Error::other("refused");
        let told = Err::<(), _>(refused()).context("no answer: refused; look").context("opening");
        assert_eq!(super::with_causes(&told.unwrap_err()), "opening: no answer: refused; look");
        let kept = Err::<(), _>(refused()).context("no answer");
        assert_eq!(super::with_causes(&kept.unwrap_err()), "no answer: refused");
    }
}
