//! The time zones Outlook accepts: every Windows name, and a fixed list of IANA names that is *not* the IANA database
//! (<https://learn.microsoft.com/graph/api/resources/datetimetimezone>); anything else is `TimeZoneNotSupportedException`.
//! The Windows names are mapped as CLDR's `windowsZones` maps them (territory 001).

use chrono::{DateTime, LocalResult, NaiveDateTime, TimeDelta, TimeZone as _, Utc};
use chrono_tz::Tz;

use super::refusal::Refusal;

/// A zone by the name the caller used; the name is given back in responses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Zone {
    pub(crate) name: String,
    tz: Tz,
}

impl Zone {
    pub(crate) fn utc() -> Self {
        Self { name: "UTC".to_owned(), tz: Tz::UTC }
    }

    /// Resolves a name; the sentence is the service's (microsoftgraph/microsoft-graph-docs#4758).
    pub(crate) fn named(name: &str) -> Result<Self, Refusal> {
        let unsupported = || {
            Refusal::bad(
                "TimeZoneNotSupportedException",
                format!(
                    "A valid TimeZone value must be specified. The following TimeZone value is not supported: '{name}'."
                ),
            )
        };
        let (canonical, iana) = WINDOWS
            .iter()
            .find(|(windows, _)| windows.eq_ignore_ascii_case(name))
            .copied()
            .or_else(|| IANA.iter().find(|(iana, _)| iana.eq_ignore_ascii_case(name)).copied())
            .ok_or_else(unsupported)?;
        Ok(Self { name: canonical.to_owned(), tz: iana.parse().map_err(|_| unsupported())? })
    }

    /// The moment of a wall-clock time. Of two, the first; of none, what the clocks would have shown without the jump,
    /// as .NET resolves an invalid time. UNVERIFIED for Outlook.
    pub(crate) fn moment(&self, local: NaiveDateTime) -> DateTime<Utc> {
        match self.tz.from_local_datetime(&local) {
            LocalResult::Single(found) | LocalResult::Ambiguous(found, _) => found.to_utc(),
            LocalResult::None => {
                let before = local - TimeDelta::hours(3);
                self.tz
                    .from_local_datetime(&before)
                    .earliest()
                    .map_or_else(|| local.and_utc(), |found| found.to_utc() + TimeDelta::hours(3))
            }
        }
    }

    pub(crate) fn wall_clock(&self, moment: DateTime<Utc>) -> NaiveDateTime {
        moment.with_timezone(&self.tz).naive_local()
    }

    /// `dateTimeTimeZone` as responses carry it: seven digits of fraction and no offset.
    pub(crate) fn value(&self, moment: DateTime<Utc>) -> serde_json::Value {
        serde_json::json!({
            "dateTime": format!("{}.{:07}", self.wall_clock(moment).format("%Y-%m-%dT%H:%M:%S"), moment.timestamp_subsec_nanos() / 100),
            "timeZone": self.name,
        })
    }
}

/// What `supportedTimeZones` lists (<https://learn.microsoft.com/graph/api/outlookuser-supportedtimezones>).
pub(crate) fn supported(iana: bool) -> Vec<serde_json::Value> {
    let list: &[(&str, &str)] = if iana { IANA } else { WINDOWS };
    list.iter().map(|(name, _)| serde_json::json!({"alias": name, "displayName": name})).collect()
}

const WINDOWS: &[(&str, &str)] = &[
    ("AUS Central Standard Time", "Australia/Darwin"),
    ("AUS Eastern Standard Time", "Australia/Sydney"),
    ("Afghanistan Standard Time", "Asia/Kabul"),
    ("Alaskan Standard Time", "America/Anchorage"),
    ("Alberta Standard Time", "America/Edmonton"),
    ("Aleutian Standard Time", "America/Adak"),
    ("Altai Standard Time", "Asia/Barnaul"),
    ("Arab Standard Time", "Asia/Riyadh"),
    ("Arabian Standard Time", "Asia/Dubai"),
    ("Arabic Standard Time", "Asia/Baghdad"),
    ("Argentina Standard Time", "America/Buenos_Aires"),
    ("Astrakhan Standard Time", "Europe/Astrakhan"),
    ("Atlantic Standard Time", "America/Halifax"),
    ("Aus Central W. Standard Time", "Australia/Eucla"),
    ("Azerbaijan Standard Time", "Asia/Baku"),
    ("Azores Standard Time", "Atlantic/Azores"),
    ("Bahia Standard Time", "America/Bahia"),
    ("Bangladesh Standard Time", "Asia/Dhaka"),
    ("Belarus Standard Time", "Europe/Minsk"),
    ("Bougainville Standard Time", "Pacific/Bougainville"),
    ("British Columbia Standard Time", "America/Vancouver"),
    ("Canada Central Standard Time", "America/Regina"),
    ("Cape Verde Standard Time", "Atlantic/Cape_Verde"),
    ("Caucasus Standard Time", "Asia/Yerevan"),
    ("Cen. Australia Standard Time", "Australia/Adelaide"),
    ("Central America Standard Time", "America/Guatemala"),
    ("Central Asia Standard Time", "Asia/Bishkek"),
    ("Central Brazilian Standard Time", "America/Cuiaba"),
    ("Central Europe Standard Time", "Europe/Budapest"),
    ("Central European Standard Time", "Europe/Warsaw"),
    ("Central Pacific Standard Time", "Pacific/Guadalcanal"),
    ("Central Standard Time", "America/Chicago"),
    ("Central Standard Time (Mexico)", "America/Mexico_City"),
    ("Chatham Islands Standard Time", "Pacific/Chatham"),
    ("China Standard Time", "Asia/Shanghai"),
    ("Cuba Standard Time", "America/Havana"),
    ("Dateline Standard Time", "Etc/GMT+12"),
    ("E. Africa Standard Time", "Africa/Nairobi"),
    ("E. Australia Standard Time", "Australia/Brisbane"),
    ("E. Europe Standard Time", "Europe/Chisinau"),
    ("E. South America Standard Time", "America/Sao_Paulo"),
    ("Easter Island Standard Time", "Pacific/Easter"),
    ("Eastern Standard Time", "America/New_York"),
    ("Eastern Standard Time (Mexico)", "America/Cancun"),
    ("Egypt Standard Time", "Africa/Cairo"),
    ("Ekaterinburg Standard Time", "Asia/Yekaterinburg"),
    ("FLE Standard Time", "Europe/Kiev"),
    ("Fiji Standard Time", "Pacific/Fiji"),
    ("GMT Standard Time", "Europe/London"),
    ("GTB Standard Time", "Europe/Bucharest"),
    ("Georgian Standard Time", "Asia/Tbilisi"),
    ("Greenland Standard Time", "America/Godthab"),
    ("Greenwich Standard Time", "Atlantic/Reykjavik"),
    ("Haiti Standard Time", "America/Port-au-Prince"),
    ("Hawaiian Standard Time", "Pacific/Honolulu"),
    ("India Standard Time", "Asia/Calcutta"),
    ("Iran Standard Time", "Asia/Tehran"),
    ("Israel Standard Time", "Asia/Jerusalem"),
    ("Jordan Standard Time", "Asia/Amman"),
    ("Kaliningrad Standard Time", "Europe/Kaliningrad"),
    ("Korea Standard Time", "Asia/Seoul"),
    ("Libya Standard Time", "Africa/Tripoli"),
    ("Line Islands Standard Time", "Pacific/Kiritimati"),
    ("Lord Howe Standard Time", "Australia/Lord_Howe"),
    ("Magadan Standard Time", "Asia/Magadan"),
    ("Magallanes Standard Time", "America/Punta_Arenas"),
    ("Manitoba Standard Time", "America/Winnipeg"),
    ("Marquesas Standard Time", "Pacific/Marquesas"),
    ("Mauritius Standard Time", "Indian/Mauritius"),
    ("Middle East Standard Time", "Asia/Beirut"),
    ("Montevideo Standard Time", "America/Montevideo"),
    ("Morocco Standard Time", "Africa/Casablanca"),
    ("Mountain Standard Time", "America/Denver"),
    ("Mountain Standard Time (Mexico)", "America/Mazatlan"),
    ("Myanmar Standard Time", "Asia/Rangoon"),
    ("N. Central Asia Standard Time", "Asia/Novosibirsk"),
    ("Namibia Standard Time", "Africa/Windhoek"),
    ("Nepal Standard Time", "Asia/Katmandu"),
    ("New Zealand Standard Time", "Pacific/Auckland"),
    ("Newfoundland Standard Time", "America/St_Johns"),
    ("Norfolk Standard Time", "Pacific/Norfolk"),
    ("North Asia East Standard Time", "Asia/Irkutsk"),
    ("North Asia Standard Time", "Asia/Krasnoyarsk"),
    ("North Korea Standard Time", "Asia/Pyongyang"),
    ("Omsk Standard Time", "Asia/Omsk"),
    ("Pacific SA Standard Time", "America/Santiago"),
    ("Pacific Standard Time", "America/Los_Angeles"),
    ("Pacific Standard Time (Mexico)", "America/Tijuana"),
    ("Pakistan Standard Time", "Asia/Karachi"),
    ("Paraguay Standard Time", "America/Asuncion"),
    ("Qyzylorda Standard Time", "Asia/Qyzylorda"),
    ("Romance Standard Time", "Europe/Paris"),
    ("Russia Time Zone 10", "Asia/Srednekolymsk"),
    ("Russia Time Zone 11", "Asia/Kamchatka"),
    ("Russia Time Zone 3", "Europe/Samara"),
    ("Russian Standard Time", "Europe/Moscow"),
    ("SA Eastern Standard Time", "America/Cayenne"),
    ("SA Pacific Standard Time", "America/Bogota"),
    ("SA Western Standard Time", "America/La_Paz"),
    ("SE Asia Standard Time", "Asia/Bangkok"),
    ("Saint Pierre Standard Time", "America/Miquelon"),
    ("Sakhalin Standard Time", "Asia/Sakhalin"),
    ("Samoa Standard Time", "Pacific/Apia"),
    ("Sao Tome Standard Time", "Africa/Sao_Tome"),
    ("Saratov Standard Time", "Europe/Saratov"),
    ("Singapore Standard Time", "Asia/Singapore"),
    ("South Africa Standard Time", "Africa/Johannesburg"),
    ("South Sudan Standard Time", "Africa/Juba"),
    ("Sri Lanka Standard Time", "Asia/Colombo"),
    ("Sudan Standard Time", "Africa/Khartoum"),
    ("Syria Standard Time", "Asia/Damascus"),
    ("Taipei Standard Time", "Asia/Taipei"),
    ("Tasmania Standard Time", "Australia/Hobart"),
    ("Tocantins Standard Time", "America/Araguaina"),
    ("Tokyo Standard Time", "Asia/Tokyo"),
    ("Tomsk Standard Time", "Asia/Tomsk"),
    ("Tonga Standard Time", "Pacific/Tongatapu"),
    ("Transbaikal Standard Time", "Asia/Chita"),
    ("Turkey Standard Time", "Europe/Istanbul"),
    ("Turks And Caicos Standard Time", "America/Grand_Turk"),
    ("US Eastern Standard Time", "America/Indianapolis"),
    ("US Mountain Standard Time", "America/Phoenix"),
    ("UTC", "Etc/UTC"),
    ("UTC+12", "Etc/GMT-12"),
    ("UTC+13", "Etc/GMT-13"),
    ("UTC-02", "Etc/GMT+2"),
    ("UTC-08", "Etc/GMT+8"),
    ("UTC-09", "Etc/GMT+9"),
    ("UTC-11", "Etc/GMT+11"),
    ("Ulaanbaatar Standard Time", "Asia/Ulaanbaatar"),
    ("Venezuela Standard Time", "America/Caracas"),
    ("Vladivostok Standard Time", "Asia/Vladivostok"),
    ("Volgograd Standard Time", "Europe/Volgograd"),
    ("W. Australia Standard Time", "Australia/Perth"),
    ("W. Central Africa Standard Time", "Africa/Lagos"),
    ("W. Europe Standard Time", "Europe/Berlin"),
    ("W. Mongolia Standard Time", "Asia/Hovd"),
    ("West Asia Standard Time", "Asia/Tashkent"),
    ("West Bank Standard Time", "Asia/Hebron"),
    ("West Pacific Standard Time", "Pacific/Port_Moresby"),
    ("Yakutsk Standard Time", "Asia/Yakutsk"),
    ("Yukon Standard Time", "America/Whitehorse"),
];

/// The page's list; where it gives two spellings both are here. The second is what `chrono-tz` knows.
const IANA: &[(&str, &str)] = &[
    ("Etc/GMT+12", "Etc/GMT+12"),
    ("Etc/GMT+11", "Etc/GMT+11"),
    ("Pacific/Honolulu", "Pacific/Honolulu"),
    ("America/Anchorage", "America/Anchorage"),
    ("America/Santa_Isabel", "America/Santa_Isabel"),
    ("America/Los_Angeles", "America/Los_Angeles"),
    ("America/Phoenix", "America/Phoenix"),
    ("America/Chihuahua", "America/Chihuahua"),
    ("America/Denver", "America/Denver"),
    ("America/Guatemala", "America/Guatemala"),
    ("America/Chicago", "America/Chicago"),
    ("America/Mexico_City", "America/Mexico_City"),
    ("America/Regina", "America/Regina"),
    ("America/Bogota", "America/Bogota"),
    ("America/New_York", "America/New_York"),
    ("America/Indiana/Indianapolis", "America/Indiana/Indianapolis"),
    ("America/Caracas", "America/Caracas"),
    ("America/Asuncion", "America/Asuncion"),
    ("America/Halifax", "America/Halifax"),
    ("America/Cuiaba", "America/Cuiaba"),
    ("America/La_Paz", "America/La_Paz"),
    ("America/Santiago", "America/Santiago"),
    ("America/St_Johns", "America/St_Johns"),
    ("America/Sao_Paulo", "America/Sao_Paulo"),
    ("America/Argentina/Buenos_Aires", "America/Argentina/Buenos_Aires"),
    ("America/Cayenne", "America/Cayenne"),
    ("America/Godthab", "America/Godthab"),
    ("America/Montevideo", "America/Montevideo"),
    ("America/Bahia", "America/Bahia"),
    ("Etc/GMT+2", "Etc/GMT+2"),
    ("Atlantic/Azores", "Atlantic/Azores"),
    ("Atlantic/Cape_Verde", "Atlantic/Cape_Verde"),
    ("Africa/Casablanca", "Africa/Casablanca"),
    ("Etc/GMT", "Etc/GMT"),
    ("Europe/London", "Europe/London"),
    ("Atlantic/Reykjavik", "Atlantic/Reykjavik"),
    ("Europe/Berlin", "Europe/Berlin"),
    ("Europe/Budapest", "Europe/Budapest"),
    ("Europe/Paris", "Europe/Paris"),
    ("Europe/Warsaw", "Europe/Warsaw"),
    ("Africa/Lagos", "Africa/Lagos"),
    ("Africa/Windhoek", "Africa/Windhoek"),
    ("Europe/Bucharest", "Europe/Bucharest"),
    ("Asia/Beirut", "Asia/Beirut"),
    ("Africa/Cairo", "Africa/Cairo"),
    ("Asia/Damascus", "Asia/Damascus"),
    ("Africa/Johannesburg", "Africa/Johannesburg"),
    ("Europe/Kyiv", "Europe/Kyiv"),
    ("Europe/Kiev", "Europe/Kiev"),
    ("Europe/Istanbul", "Europe/Istanbul"),
    ("Asia/Jerusalem", "Asia/Jerusalem"),
    ("Asia/Amman", "Asia/Amman"),
    ("Asia/Baghdad", "Asia/Baghdad"),
    ("Europe/Kaliningrad", "Europe/Kaliningrad"),
    ("Asia/Riyadh", "Asia/Riyadh"),
    ("Africa/Nairobi", "Africa/Nairobi"),
    ("Asia/Tehran", "Asia/Tehran"),
    ("Asia/Dubai", "Asia/Dubai"),
    ("Asia/Baku", "Asia/Baku"),
    ("Europe/Moscow", "Europe/Moscow"),
    ("Indian/Mauritius", "Indian/Mauritius"),
    ("Asia/Tbilisi", "Asia/Tbilisi"),
    ("Asia/Yerevan", "Asia/Yerevan"),
    ("Asia/Kabul", "Asia/Kabul"),
    ("Asia/Karachi", "Asia/Karachi"),
    ("Asia/Toshkent", "Asia/Tashkent"),
    ("Asia/Tashkent", "Asia/Tashkent"),
    ("Asia/Kolkata", "Asia/Kolkata"),
    ("Asia/Colombo", "Asia/Colombo"),
    ("Asia/Kathmandu", "Asia/Kathmandu"),
    ("Asia/Astana", "Asia/Almaty"),
    ("Asia/Almaty", "Asia/Almaty"),
    ("Asia/Dhaka", "Asia/Dhaka"),
    ("Asia/Yekaterinburg", "Asia/Yekaterinburg"),
    ("Asia/Yangon", "Asia/Yangon"),
    ("Asia/Rangoon", "Asia/Rangoon"),
    ("Asia/Bangkok", "Asia/Bangkok"),
    ("Asia/Novosibirsk", "Asia/Novosibirsk"),
    ("Asia/Shanghai", "Asia/Shanghai"),
    ("Asia/Krasnoyarsk", "Asia/Krasnoyarsk"),
    ("Asia/Singapore", "Asia/Singapore"),
    ("Australia/Perth", "Australia/Perth"),
    ("Asia/Taipei", "Asia/Taipei"),
    ("Asia/Ulaanbaatar", "Asia/Ulaanbaatar"),
    ("Asia/Irkutsk", "Asia/Irkutsk"),
    ("Asia/Tokyo", "Asia/Tokyo"),
    ("Asia/Seoul", "Asia/Seoul"),
    ("Australia/Adelaide", "Australia/Adelaide"),
    ("Australia/Darwin", "Australia/Darwin"),
    ("Australia/Brisbane", "Australia/Brisbane"),
    ("Australia/Sydney", "Australia/Sydney"),
    ("Pacific/Port_Moresby", "Pacific/Port_Moresby"),
    ("Australia/Hobart", "Australia/Hobart"),
    ("Asia/Yakutsk", "Asia/Yakutsk"),
    ("Pacific/Guadalcanal", "Pacific/Guadalcanal"),
    ("Asia/Vladivostok", "Asia/Vladivostok"),
    ("Pacific/Auckland", "Pacific/Auckland"),
    ("Etc/GMT-12", "Etc/GMT-12"),
    ("Pacific/Fiji", "Pacific/Fiji"),
    ("Asia/Magadan", "Asia/Magadan"),
    ("Pacific/Tongatapu", "Pacific/Tongatapu"),
    ("Pacific/Apia", "Pacific/Apia"),
    ("Pacific/Kiritimati", "Pacific/Kiritimati"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_resolves_and_unlisted_iana_names_do_not() {
        for (name, _) in WINDOWS.iter().chain(IANA) {
            assert!(Zone::named(name).is_ok(), "{name}");
        }
        for name in ["Europe/Zurich", "Europe/Vienna", "Greenwich Mean Time", "", "GMT+6:30", "[]"] {
            assert_eq!(Zone::named(name).expect_err(name).code, "TimeZoneNotSupportedException");
        }
    }

    #[test]
    fn clocks_that_jump_are_survived() {
        let berlin = Zone::named("W. Europe Standard Time").expect("known");
        let at = |text: &str| berlin.moment(text.parse().expect("a time")).to_rfc3339();
        assert_eq!(at("2026-07-01T12:00:00"), "2026-07-01T10:00:00+00:00");
        assert_eq!(at("2026-03-29T02:30:00"), "2026-03-29T01:30:00+00:00");
        assert_eq!(at("2026-10-25T02:30:00"), "2026-10-25T00:30:00+00:00");
    }
}
