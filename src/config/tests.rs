//! Settings that work, and every wrong one with what it is told.

use std::io::Write as _;

use super::*;

fn file(text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("followthrough-{}.toml", uuid::Uuid::now_v7()));
    std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    path
}

fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
    let path = file(text);
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let loaded = Config::load(Some(&path), environment).map_err(|error| error.to_string());
    std::fs::remove_file(&path).unwrap();
    loaded.map_err(|error| error.replace(path.to_str().unwrap(), "FILE"))
}

const KEY_1: &str = "one:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

#[test]
fn nothing_configured_is_one_machine_with_the_documented_defaults() {
    let config = Config::load(None, std::iter::empty()).unwrap();
    assert!(config.is_embedded());
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.workers.concurrency, 16);
    assert_eq!(config.retry.rungs().unwrap().len(), 5);
    assert_eq!(config.microsoft.graph_url().as_str(), "https://graph.microsoft.com/");
}

#[test]
fn the_environment_wins_over_the_file() {
    let config = load(
        "[workers]\nconcurrency = 3\n[workers.kinds.\"email.draft\"]\nconcurrency = 1\n\
         [workers.kinds.crm.update]\nconcurrency = 2\n",
        &[
            ("FOLLOWTHROUGH_WORKERS_CONCURRENCY", "5"),
            ("FOLLOWTHROUGH_WORKERS_KINDS_EMAIL_DRAFT_CONCURRENCY", "7"),
            ("FOLLOWTHROUGH_RETRY_LADDER", "1s, 2s"),
            ("FOLLOWTHROUGH_TEST_AMQP_URL", "amqp://elsewhere"),
            ("PATH", "/bin"),
            // Kubernetes' own, where a service is named followthrough.
            ("FOLLOWTHROUGH_SERVICE_HOST", "10.0.0.1"),
            ("FOLLOWTHROUGH_SERVICE_PORT", "8080"),
            ("FOLLOWTHROUGH_SERVICE_PORT_HTTP", "8080"),
            ("FOLLOWTHROUGH_PORT", "tcp://10.0.0.1:8080"),
            ("FOLLOWTHROUGH_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ],
    )
    .unwrap();
    assert_eq!(config.workers.concurrency, 5);
    assert_eq!(config.workers.kinds["email.draft"].concurrency, Some(7));
    assert_eq!(config.workers.kinds["crm.update"].concurrency, Some(2));
    assert_eq!(config.retry.ladder, ["1s", "2s"]);
    let kinds = ["email.draft".to_owned(), "crm.create".to_owned()];
    let refused = config.check_kinds(&kinds).unwrap_err().to_string();
    assert!(refused.contains("workers.kinds.crm.update"), "{refused}");
}

#[test]
fn secrets_can_come_from_files() {
    let key = file(&format!("{KEY_1}\n"));
    let path = key.to_str().unwrap();
    let config = load("[broker]\nurl = \"amqps://h\"\n", &[("FOLLOWTHROUGH_VAULT_KEYS_FILE", path)]).unwrap();
    assert_eq!(config.vault.keys[0].expose_secret(), KEY_1);
    let config = load(&format!("[vault]\nkeys_file = \"{path}\"\n"), &[]).unwrap();
    assert_eq!(config.vault.keys[0].expose_secret(), KEY_1);
    std::fs::remove_file(key).unwrap();
}

#[test]
fn every_wrong_setting_is_refused_with_its_key_and_what_is_expected() {
    let table: &[(&str, &str)] = &[
        ("[databse]\nurl = \"x\"", "databse: no such setting; did you mean database? (FILE)"),
        ("[database]\nuri = \"x\"", "database.uri: no such setting; did you mean database.url? (FILE)"),
        ("database = 1", "database: expected a section; got a number (FILE)"),
        ("[database]\nurl = \"mysql://a\"", "database.url: expected sqlite://<file> or postgres://"),
        ("[database]\nurl = \"sqlite::memory:\"", "database.url: expected sqlite://<file>"),
        ("[database]\nconnections = 0", "database.connections: expected a whole number from 1 to 1000"),
        ("[broker]\nurl = \"http://a\"", "broker.url: expected embedded, or amqp"),
        ("[broker]\nprefix = \"a b\"", "broker.prefix: expected 1 to 64 characters"),
        ("[broker]\nprefix = \"amq.x\"", "broker.prefix: expected 1 to 64 characters"),
        ("[broker]\ntopology = \"make\"", "broker.topology: expected declare, verify, export; got text of 4"),
        ("[broker]\nca_file = \"/nowhere\"", "broker.ca_file: expected a file that can be read"),
        ("[http]\nlisten = \"localhost\"", "http.listen: expected an address and port"),
        ("[http]\nlisten = true", "http.listen: expected text; got true or false"),
        ("[http]\npublic_url = \"http://example.com\"", "http.public_url: expected https"),
        ("[http]\npublic_url = \"https://u:p@example.com\"", "http.public_url: expected a URL without user"),
        ("[http]\nmetrics_listen = \"127.0.0.1:8080\"", "http.metrics_listen: is http.listen"),
        ("[microsoft]\ncloud = \"mars\"", "microsoft.cloud: expected global, usgov, usgov-dod, china"),
        ("[microsoft]\nclient_id = \"a\"", "microsoft.client_id: expected the app registration's client id"),
        (
            "[microsoft]\nclient_id = \"01234567-89ab-cdef-0123-456789abcdef\"",
            "microsoft.client_secret: absent",
        ),
        ("[microsoft]\nclient_secret = \"a\"", "microsoft.client_id: absent"),
        ("[microsoft]\nclient_certificate = \"a\"", "microsoft.client_certificate: expected PEM"),
        ("[microsoft]\ndataverse_hosts = [\"*.com\"]", "microsoft.dataverse_hosts: entry 1: expected a host"),
        ("[microsoft]\ndataverse_hosts = [\"https://a.b\"]", "microsoft.dataverse_hosts: entry 1"),
        ("[vault]\nkeys = [\"abc\"]", "vault.keys: entry 1 is 3 characters without a colon"),
        ("[vault]\nkeys = [\"a:AAAA\"]", "vault.keys: entry 1 holds 3 bytes"),
        ("[retry]\nladder = []", "retry.ladder: expected 1 to 12 delays"),
        (
            "[retry]\nladder = [\"5m\", \"1m\"]",
            "retry.ladder: delay 2: expected more than the delay before it",
        ),
        ("[retry]\nladder = [\"soon\"]", "retry.ladder: delay 1: expected a duration"),
        ("[retry]\nladder = [\"8d\"]", "retry.ladder: delay 1: expected at most 7d"),
        ("[workers]\nconcurrency = \"many\"", "workers.concurrency: expected a whole number"),
        ("[workers]\nlease = \"1s\"", "workers.lease: expected a duration like 30s, 5m or 2h, from 5s to 1h"),
        ("[workers.kinds.\"a.b\"]\nspeed = 1", "workers.kinds.a.b.speed: no such setting"),
        ("[mailbox]\nslots = 9", "mailbox.slots: expected a whole number from 1 to 4"),
        ("[telemetry]\nlog = \"loud\"", "telemetry.log: expected pretty, json"),
        ("[telemetry]\nlevel = \"info,=,\"", "telemetry.level: expected error, warn"),
        ("[telemetry]\notlp_endpoint = \"https://a\"", "telemetry.otlp_endpoint: this build exports no"),
        ("[broker]\nurl = \"amqp://h\"", "vault.keys: absent, but required"),
        ("[broker]\nurl = \"amqp://h\"", "broker.url: without TLS to another machine"),
        ("[broker]\nplaintext = \"yes\"", "broker.plaintext: expected true or false; got text of 3"),
        ("[database]\nurl = \"postgres://u@h/d\"", "database.url: without TLS to another machine"),
        ("[database\nurl", "FILE:1: no TOML"),
    ];
    for (text, expected) in table {
        let told = load(text, &[]).expect_err(text);
        assert!(told.contains(expected), "{text}\n  said {told}\n  not  {expected}");
    }
    for (name, value, expected) in [
        ("FOLLOWTHROUGH_DATABSE_URL", "x", "did you mean FOLLOWTHROUGH_DATABASE_URL?"),
        ("FOLLOWTHROUGH_VAULT_KEYS_FILE", "/nowhere", "vault.keys_file: /nowhere cannot be read"),
        ("FOLLOWTHROUGH_MAILBOX_SLOTS", "four", "got text of 4 characters (FOLLOWTHROUGH_MAILBOX_SLOTS)"),
    ] {
        let told = load("", &[(name, value)]).expect_err(name);
        assert!(told.contains(expected), "{name}: {told}");
    }
}

#[test]
fn another_machine_is_reached_through_tls_unless_the_settings_say_otherwise() {
    let told = |section: &str, url: &str| {
        let text = format!("[{section}]\nurl = \"{url}\"\n[vault]\nkeys = [\"{KEY_1}\"]\n");
        load(&text, &[]).err().unwrap_or_default()
    };
    for (section, url, open) in [
        ("broker", "amqp://u:p@rabbit/", true),
        ("broker", "amqp://u:p@10.0.0.1:5672", true),
        ("broker", "amqp://localhost.example.com", true),
        ("broker", "amqps://u:p@rabbit/", false),
        ("broker", "amqp://u:p@127.0.0.1", false),
        ("broker", "amqp://u:p@[::1]:1234/%2f", false),
        ("broker", "amqp://localhost", false),
        ("database", "postgres://u:p@db/d", true),
        ("database", "postgresql://u:p@db/d?sslmode=prefer", true),
        ("database", "postgres://u:p@localhost/d?host=db", true),
        ("database", "postgres://u:p@db/d?sslmode=disable", true),
        ("database", "postgres://u:p@db/d?sslmode=require", false),
        ("database", "postgres://u:p@db/d?sslmode=verify-full", false),
        ("database", "postgres://u:p@127.0.0.1/d", false),
        ("database", "postgres://u@localhost/d?host=/var/run/postgresql", false),
        ("database", "sqlite://followthrough.db", false),
    ] {
        let told = told(section, url);
        assert_eq!(told.contains("without TLS"), open, "{url}: {told}");
        assert_eq!(told.is_empty(), !open, "{url}: {told}");
    }
    let allowed = [("FOLLOWTHROUGH_BROKER_PLAINTEXT", "true"), ("FOLLOWTHROUGH_VAULT_KEYS", KEY_1)];
    assert!(load("[broker]\nurl = \"amqp://rabbit\"", &allowed).is_ok());
    let allowed = [("FOLLOWTHROUGH_DATABASE_PLAINTEXT", "true"), ("FOLLOWTHROUGH_VAULT_KEYS", KEY_1)];
    assert!(load("[database]\nurl = \"postgres://u@db/d\"", &allowed).is_ok());
}

#[test]
fn everything_wrong_is_told_at_once_and_no_value_is_repeated() {
    let told = load(
        "[database]\nurl = \"hunter2-db\"\n[broker]\nurl = \"hunter2-broker\"\nzzz = \"hunter2\"\n\
         [vault]\nkeys = [\"hunter2:hunter2\"]\n[microsoft]\nclient_certificate = \"hunter2\"",
        &[("FOLLOWTHROUGH_HTTP_LISTEN", "hunter2")],
    )
    .unwrap_err();
    assert!(!told.contains("hunter2"), "{told}");
    let keys =
        ["database.url", "broker.url", "broker.zzz", "vault.keys", "client_certificate", "http.listen"];
    for key in keys {
        assert!(told.contains(key), "{key} is missing in {told}");
    }
    let told = load("[database]\nurl = \"hunter2\n", &[]).unwrap_err();
    assert!(!told.contains("hunter2"), "{told}");
}

#[test]
fn the_table_of_settings_names_exactly_what_the_types_read() {
    // serde lists a struct's fields when it meets one it does not know.
    let fields = |section: Option<&str>| -> Vec<String> {
        let mut tree = load::defaults();
        let wrong: Value = 1.into();
        match section {
            None => tree.insert("?".to_owned(), wrong),
            Some(section) => {
                let Some(Value::Dict(_, dict)) = tree.get_mut(section) else { panic!("{section}") };
                dict.insert("?".to_owned(), wrong)
            }
        };
        let error = Value::from(tree).deserialize::<Config>().unwrap_err();
        let figment::error::Kind::UnknownField(_, fields) = error.kind else { panic!("{error}") };
        fields.iter().map(|field| (*field).to_owned()).collect()
    };
    let mut read: Vec<String> = Vec::new();
    for section in fields(None) {
        for field in fields(Some(&section)) {
            read.push(match format!("{section}.{field}").as_str() {
                "workers.kinds" => "workers.kinds.<kind>.concurrency".to_owned(),
                name => name.to_owned(),
            });
        }
    }
    let mut named: Vec<String> = KEYS.iter().map(|key| key.name.to_owned()).collect();
    read.sort();
    named.sort();
    assert_eq!(read, named);
}
