//! The counts that are committed, and how new ones compare with them. A count is a matter of the compiler, the C library and the processor
//! that valgrind shows as well: where one of these is another, nothing is judged.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How much a count may differ from the committed one, in per cent. Two runs of one binary differ by less than a tenth of one.
pub(super) const TOLERANCE_PERCENT: f64 = 2.0;

/// What counts depend on besides our own code.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Conditions {
    /// The compiler and its flags.
    pub(super) compiler: String,
    /// `glibc 2.36`: copying, comparing and allocating are its.
    pub(super) libc: String,
    /// `x86_64 avx2`: what the program may use of it.
    pub(super) cpu: String,
    pub(super) valgrind: String,
}

/// Instructions of each operation, and under which conditions.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) conditions: Conditions,
    pub(super) instructions: BTreeMap<String, f64>,
}

/// What is to be said of an operation.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Verdict {
    /// Within the tolerance; per cent.
    Same(f64),
    /// More or fewer, per cent.
    Changed(f64),
    /// Not in the baseline.
    New,
}

impl Conditions {
    /// What is not as it was, for people; nothing where all is.
    pub(super) fn differences(&self, before: &Conditions) -> Vec<String> {
        let pairs = [
            ("compiler", &self.compiler, &before.compiler),
            ("C library", &self.libc, &before.libc),
            ("processor", &self.cpu, &before.cpu),
            ("valgrind", &self.valgrind, &before.valgrind),
        ];
        let differ = pairs.into_iter().filter(|(_, now, before)| now != before);
        differ.map(|(name, now, before)| format!("{name} is {now} and was {before}")).collect()
    }
}

/// Of one operation.
pub(super) fn verdict(instructions: f64, before: Option<f64>) -> Verdict {
    let Some(before) = before else { return Verdict::New };
    let percent = 100.0 * (instructions / before - 1.0);
    if percent.abs() > TOLERANCE_PERCENT { Verdict::Changed(percent) } else { Verdict::Same(percent) }
}

impl Verdict {
    /// True exactly when the baseline no longer tells what is.
    pub(super) fn is_fault(self) -> bool {
        !matches!(self, Verdict::Same(_))
    }

    /// For the table.
    pub(super) fn text(self) -> String {
        match self {
            Verdict::Same(percent) => format!("{percent:+.2} %"),
            Verdict::Changed(percent) => format!("{percent:+.2} %  CHANGED"),
            Verdict::New => "NEW".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions() -> Conditions {
        let text = |text: &str| text.to_owned();
        Conditions { compiler: text("rustc 1"), libc: text("glibc 2"), cpu: text("x86_64 avx2"), valgrind: text("valgrind-3") }
    }

    #[test]
    fn two_per_cent_is_the_line_both_ways() {
        for (now, before, fault, text) in [
            (1_000.0, Some(1_000.0), false, "+0.00 %"),
            (1_019.9, Some(1_000.0), false, "+1.99 %"),
            (1_020.1, Some(1_000.0), true, "+2.01 %  CHANGED"),
            (980.1, Some(1_000.0), false, "-1.99 %"),
            (979.9, Some(1_000.0), true, "-2.01 %  CHANGED"),
            (1.0, None, true, "NEW"),
        ] {
            let verdict = verdict(now, before);
            assert_eq!((verdict.is_fault(), &*verdict.text()), (fault, text), "{now} after {before:?}");
        }
    }

    #[test]
    fn other_conditions_are_named() {
        assert_eq!(conditions().differences(&conditions()), [""; 0]);
        let newer = Conditions { compiler: "rustc 2".into(), cpu: "x86_64".into(), ..conditions() };
        let expected = ["compiler is rustc 2 and was rustc 1", "processor is x86_64 and was x86_64 avx2"];
        assert_eq!(newer.differences(&conditions()), expected);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let counts = Counts { conditions: conditions(), instructions: [("frame".to_owned(), 123.45)].into() };
        let text = serde_json::to_string_pretty(&counts).expect("JSON");
        assert_eq!(serde_json::from_str::<Counts>(&text).expect("our own"), counts);
    }
}
