//! From a local time in any IANA zone to the moment it means.
//!
//! The invariant: a moment that comes out shows exactly the given local time in the zone, or nothing comes
//! out. A skipped time means no moment, and guessing one would invite people to the wrong hour.

use chrono::{DateTime, Datelike as _, MappedLocalTime, NaiveDateTime, TimeZone as _, Utc};
use chrono_tz::Tz;
use followthrough::job::Invalid;

/// The moments of a start and an end.
pub(super) fn between(start: &str, end: &str, zone: &str) -> Result<(DateTime<Utc>, DateTime<Utc>), Invalid> {
    let zone: Tz = zone.parse().map_err(|_| {
        Invalid::new("time_zone", "expected an IANA time zone such as Europe/Zurich")
            .code("unknown_time_zone")
    })?;
    let (start, _) = moments(zone, local(start, "start")?, "start")?;
    let (first, second) = moments(zone, local(end, "end")?, "end")?;
    match [first, second].into_iter().find(|end| *end > start) {
        Some(end) => Ok((start, end)),
        None => Err(Invalid::new("end", "expected a time after the start").code("end_not_after_start")),
    }
}

fn local(text: &str, path: &str) -> Result<NaiveDateTime, Invalid> {
    let plain = text.len() <= 32 && text.starts_with(|c: char| c.is_ascii_digit());
    let read = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"]
        .into_iter()
        .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
        // The years that calendars work with, and what a number of seconds must not wrap around in.
        .filter(|time| plain && (1970..=2200).contains(&time.year()));
    read.ok_or_else(|| {
        Invalid::new(path, "expected a local time without an offset, such as 2026-11-24T15:00:00")
    })
}

/// The first and the last moment at which the zone's clocks show this time; mostly the same one.
fn moments(zone: Tz, local: NaiveDateTime, path: &str) -> Result<(DateTime<Utc>, DateTime<Utc>), Invalid> {
    match zone.from_local_datetime(&local) {
        MappedLocalTime::Single(time) => Ok((time.to_utc(), time.to_utc())),
        MappedLocalTime::Ambiguous(a, b) => Ok((a.to_utc().min(b.to_utc()), a.to_utc().max(b.to_utc()))),
        MappedLocalTime::None => {
            let message = format!("the clocks of {zone} skip this time");
            Err(Invalid::new(path, message).code("nonexistent_time"))
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::{Duration, Offset as _};
    use chrono_tz::TZ_VARIANTS;

    use super::*;

    fn utc(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).expect("a time").to_utc()
    }

    fn both(start: &str, end: &str, zone: &str) -> Result<(DateTime<Utc>, DateTime<Utc>), &'static str> {
        between(start, end, zone).map_err(|invalid| invalid.code)
    }

    #[test]
    fn zones_that_graph_does_not_know_work_too() {
        for (zone, start) in [
            ("Europe/Zurich", "2026-07-01T13:00:00Z"),
            ("Asia/Kathmandu", "2026-07-01T09:15:00Z"),
            ("America/St_Johns", "2026-07-01T17:30:00Z"),
            ("Pacific/Chatham", "2026-07-01T02:15:00Z"),
            ("UTC", "2026-07-01T15:00:00Z"),
        ] {
            let (at, _) = both("2026-07-01T15:00", "2026-07-01T16:00:00.0000000", zone).expect(zone);
            assert_eq!(at, utc(start), "{zone}");
        }
    }

    #[test]
    fn a_skipped_time_is_refused_and_of_a_doubled_one_the_first_is_meant() {
        let zone = "Europe/Berlin";
        assert_eq!(both("2026-03-29T02:30:00", "2026-03-29T04:00:00", zone), Err("nonexistent_time"));
        let (start, end) = both("2026-10-25T02:30:00", "2026-10-25T03:00:00", zone).expect("a doubled start");
        assert_eq!((start, end), (utc("2026-10-25T00:30:00Z"), utc("2026-10-25T02:00:00Z")));
        // 02:45 in summer time to 02:15 in winter time: half an hour, not minus half an hour.
        let (start, end) = both("2026-10-25T02:45:00", "2026-10-25T02:15:00", zone).expect("a doubled end");
        assert_eq!(end - start, Duration::minutes(30));
    }

    #[test]
    fn every_moment_of_every_zone_comes_back_or_its_double_does() {
        let days = || (0..365).map(|day| utc("2026-01-01T12:00:00Z") + Duration::days(day));
        for zone in TZ_VARIANTS {
            let offset = |at: DateTime<Utc>| at.with_timezone(&zone).offset().fix().local_minus_utc();
            // Once a day, and every ten minutes of a day on which the clocks change.
            let changes = days().filter(|day| offset(*day) != offset(*day + Duration::days(1)));
            let moments =
                days().chain(changes.flat_map(|day| (0..144).map(move |i| day + Duration::minutes(10 * i))));
            for moment in moments {
                let local = moment.with_timezone(&zone).naive_local();
                let (first, last) =
                    super::moments(zone, local, "start").unwrap_or_else(|_| panic!("{zone} {local}"));
                assert!(first == moment || last == moment, "{zone} {moment}");
                for found in [first, last] {
                    assert_eq!(found.with_timezone(&zone).naive_local(), local, "{zone} {moment}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_local_time_is_refused() {
        for text in [
            "",
            "2026-11-24",
            "2026-11-24T15:00:00Z",
            "2026-11-24T15:00:00+01:00",
            "24.11.2026 15:00",
            "2026-02-30T10:00:00",
            "2026-11-24T25:00:00",
            "9999-01-01T00:00:00",
            "-2026-01-01T00:00:00",
        ] {
            assert!(local(text, "start").is_err(), "{text}");
        }
    }
}
