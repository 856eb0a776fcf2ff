//! What is wrong with the settings, told so that it can be put right: the key, the value, where it came from, what is allowed.

use std::fmt;

/// Where a value came from, strongest first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// The command line.
    Flag(&'static str),
    /// A `URINGCAST_` variable.
    Variable(String),
    /// A variable of one of the servers that this one replaces.
    OldVariable(String),
    /// The configuration file.
    File(String),
    /// Nobody said anything.
    Default,
}

impl Origin {
    /// Position in the precedence: of two values the one with the smaller rank wins.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Origin::Flag(_) => 0,
            Origin::Variable(_) => 1,
            Origin::OldVariable(_) => 2,
            Origin::File(_) => 3,
            Origin::Default => 4,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(name) => write!(f, "flag {name}"),
            Origin::Variable(name) | Origin::OldVariable(name) => write!(f, "variable {name}"),
            Origin::File(path) => write!(f, "file {path}"),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The setting, `section.key`.
    pub key: String,
    /// What was given, quoted; `None` where nothing was, or where it is a secret.
    pub value: Option<String>,
    /// Where it was given; `None` where nothing was.
    pub origin: Option<String>,
    /// What is allowed or missing.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        if let Some(origin) = &self.origin {
            write!(f, " ({origin})")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// Everything that is wrong, a line each; the process exits with [`Problems::EXIT_STATUS`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// `EX_CONFIG` of sysexits.h: systemd units can say not to restart on it.
    pub const EXIT_STATUS: u8 = 78;

    /// A single one.
    pub fn of(key: &str, reason: String) -> Problems {
        Problems(vec![Problem { key: key.into(), value: None, origin: None, reason }])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| writeln!(f, "{problem}"))
    }
}

impl std::error::Error for Problems {}
