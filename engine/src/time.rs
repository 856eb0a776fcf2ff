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
    pub fn rfc3339(self) -> String {
        rfc3339(self.unix_ms)
    }
}

/// RFC 3339 UTC with milliseconds of a wall clock reading in milliseconds since 1970.
pub fn rfc3339(unix_ms: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(unix_ms);
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_have_milliseconds_and_a_z() {
        assert_eq!(super::rfc3339(1_704_067_200_000), "2024-01-01T00:00:00.000Z");
    }
}
