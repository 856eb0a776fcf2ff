//! Time as an argument: no room left of the driver ever asks a clock.

/// One reading of both clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Monotonic nanoseconds: deadlines and durations.
    pub ns: u64,
    /// Wall clock, milliseconds since 1970: what messages and tokens carry.
    pub unix_ms: u64,
}

impl Now {
    /// Monotonic milliseconds.
    pub fn ms(self) -> u64 {
        self.ns / 1_000_000
    }

    /// Monotonic tenths of a second: enough to say how long somebody has been silent, in half the space. They last for thirteen years.
    pub fn tenths(self) -> u32 {
        (self.ms() / 100) as u32
    }

    /// RFC 3339 UTC with milliseconds: `2024-01-01T00:00:00.000Z`.
    pub fn rfc3339(self) -> Rfc3339 {
        rfc3339(self.unix_ms)
    }
}

/// A time as a text without an allocation: most messages have one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rfc3339([u8; 24]);

impl std::ops::Deref for Rfc3339 {
    type Target = str;

    fn deref(&self) -> &str {
        // Made of digits and the signs of the form.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// The end of the year 9999, the last that the form has a place for.
const UNIX_MS_MAX: u64 = 253_402_300_799_999;

/// RFC 3339 UTC with milliseconds of a wall clock reading in milliseconds since 1970; what is later than the year 9999 is its end.
pub fn rfc3339(unix_ms: u64) -> Rfc3339 {
    let unix_ms = unix_ms.min(UNIX_MS_MAX);
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = date(days);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let mut put = |at: usize, digits: usize, mut number: u64| {
        for place in text[at..at + digits].iter_mut().rev() {
            *place = b'0' + (number % 10) as u8;
            number /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, ms / 3_600_000);
    put(14, 2, ms / 60_000 % 60);
    put(17, 2, ms / 1_000 % 60);
    put(20, 3, ms % 1_000);
    Rfc3339(text)
}

/// Year, month and day, from days since 1970. Years are counted from March, so that the day that not all of them have is their last.
fn date(days: u64) -> (u64, u64, u64) {
    /// From 1 March of the year 0 to 1 January 1970.
    const DAYS_BEFORE: u64 = 719_468;
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let days = days + DAYS_BEFORE;
    let (cycle, day) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months since March; five of them have 153 days.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (cycle * 400 + year + later, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn times_have_milliseconds_and_a_z() {
        assert_eq!(*rfc3339(1_704_067_200_000), *"2024-01-01T00:00:00.000Z");
        assert_eq!(*rfc3339(u64::MAX), *"9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn every_day_is_that_of_the_library() {
        for day in 0..=UNIX_MS_MAX / 86_400_000 {
            let unix_ms = day * 86_400_000 + day * 7_919_993 % 86_400_000;
            let oracle = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(unix_ms));
            assert_eq!(*rfc3339(unix_ms), oracle.to_string());
        }
    }
}
