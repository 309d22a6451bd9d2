//! Sealing: what may never lie readable in the database.
//!
//! The invariant: a sealed value opens only in the table, row and column it was sealed for, and only
//! with a key of the list; no error says more of a key than where it stands and what it looks like.

use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use secrecy::{ExposeSecret as _, SecretSlice, SecretString};
use sha2::Sha256;

use crate::config::Config;

const VERSION: u8 = 1;
const NONCE: usize = 12;

/// The keys, newest first. The newest seals; all of them open.
#[derive(Clone)]
pub struct Keys(Arc<Vec<Key>>);

struct Key {
    id: String,
    cipher: Aes256Gcm,
    /// For signing, so that no key serves two algorithms.
    signing: SecretSlice<u8>,
}

/// Where a sealed value belongs.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub table: &'a str,
    pub row: &'a [u8],
    pub column: &'a str,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("a sealed value is damaged or was sealed for another place")]
    Damaged,
    #[error("a sealed value needs the key {0:?}, which is not in vault.keys")]
    UnknownKey(String),
}

/// A wrong setting: names the key, the shape of what was given and what is expected, never a key's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeysError(String);

const EXPECTED: &str = "expected `id:base64(32 bytes)`, newest first";

impl Keys {
    /// Reads `vault.keys`.
    pub fn parse(entries: &[SecretString]) -> Result<Self, KeysError> {
        if entries.is_empty() {
            return Err(KeysError(format!("vault.keys: empty; {EXPECTED}")));
        }
        let mut keys: Vec<Key> = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let wrong =
                |shape: &str| KeysError(format!("vault.keys: entry {} {shape}; {EXPECTED}", index + 1));
            let text = entry.expose_secret().trim();
            let Some((id, encoded)) = text.split_once(':') else {
                return Err(wrong(&format!("is {} characters without a colon", text.chars().count())));
            };
            let id_is_right = (1..=32).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
            if !id_is_right {
                return Err(wrong("has an id that is not 1 to 32 letters, digits, `_`, `-` or `.`"));
            }
            if keys.iter().any(|key| key.id == id) {
                return Err(wrong("has the id of an entry before it"));
            }
            let Ok(bytes) = STANDARD.decode(encoded.trim()) else {
                return Err(wrong("is not base64 behind its colon"));
            };
            let bytes = SecretSlice::from(bytes);
            let Ok(cipher) = Aes256Gcm::new_from_slice(bytes.expose_secret()) else {
                return Err(wrong(&format!("holds {} bytes", bytes.expose_secret().len())));
            };
            let signing = mac(bytes.expose_secret(), b"followthrough signing key v1");
            keys.push(Key { id: id.to_owned(), cipher, signing: SecretSlice::from(signing) });
        }
        Ok(Self(Arc::new(keys)))
    }

    /// The keys of these settings: those that are given, or on one machine those of the file beside its
    /// database.
    pub fn of(config: &Config) -> Result<Self, KeysError> {
        if !config.vault.keys.is_empty() {
            return Self::parse(&config.vault.keys);
        }
        let database = config.database.url.expose_secret();
        let embedded = config.broker.url.expose_secret() == "embedded";
        match database.strip_prefix("sqlite:") {
            Some(path) if embedded && path.contains(":memory:") => Self::parse(&[Self::generate("memory")]),
            Some(path) if embedded => {
                let path = path.trim_start_matches("//").split('?').next().unwrap_or_default();
                Self::load_or_create(&Path::new(path).with_extension("keys"))
            }
            _ => Err(KeysError(format!(
                "vault.keys: missing; {EXPECTED} (only SQLite with the embedded broker makes its own)"
            ))),
        }
    }

    /// One fresh key, in the form that [`Keys::parse`] reads.
    pub fn generate(id: &str) -> SecretString {
        let key: [u8; 32] = rand::random();
        format!("{id}:{}", STANDARD.encode(key)).into()
    }

    /// The keys of an installation that was given none: made at its first start, in a file that only its
    /// owner reads. Two processes that start together end with the same file.
    pub fn load_or_create(path: &Path) -> Result<Self, KeysError> {
        let wrong =
            |what: &dyn fmt::Display| KeysError(format!("vault.keys: file {}: {what}", path.display()));
        if !path.exists() {
            create(path).map_err(|error| wrong(&error))?;
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(path).map_err(|error| wrong(&error))?.permissions().mode();
            if mode & 0o077 != 0 {
                return Err(wrong(&format!(
                    "others may read it (mode {:o}); expected mode 600",
                    mode & 0o777
                )));
            }
        }
        let text: SecretString = std::fs::read_to_string(path).map_err(|error| wrong(&error))?.into();
        let entries: Vec<SecretString> = text
            .expose_secret()
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(SecretString::from)
            .collect();
        Self::parse(&entries).map_err(|error| wrong(&error))
    }

    /// Seals with the newest key.
    pub fn seal(&self, place: Place<'_>, plain: &[u8]) -> Vec<u8> {
        let key = &self.0[0];
        let nonce: [u8; NONCE] = rand::random();
        let ciphertext = key
            .cipher
            .encrypt(&Nonce::from(nonce), Payload { msg: plain, aad: &place.associated() })
            .expect("AES-GCM refuses only what is longer than 64 GiB");
        let id = u8::try_from(key.id.len()).expect("an id is at most 32 bytes");
        [&[VERSION, id], key.id.as_bytes(), &nonce, &ciphertext].concat()
    }

    pub fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<SecretSlice<u8>, SealError> {
        let (id, rest) = split(sealed)?;
        let key = self
            .0
            .iter()
            .find(|key| key.id.as_bytes() == id)
            .ok_or_else(|| SealError::UnknownKey(String::from_utf8_lossy(id).into_owned()))?;
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE>().ok_or(SealError::Damaged)?;
        key.cipher
            .decrypt(&Nonce::from(*nonce), Payload { msg: ciphertext, aad: &place.associated() })
            .map(SecretSlice::from)
            .map_err(|_| SealError::Damaged)
    }

    /// The same value under the newest key; `None` when it already is.
    pub fn reseal(&self, place: Place<'_>, sealed: &[u8]) -> Result<Option<Vec<u8>>, SealError> {
        let (id, _) = split(sealed)?;
        if id == self.0[0].id.as_bytes() {
            return Ok(None);
        }
        let plain = self.open(place, sealed)?;
        Ok(Some(self.seal(place, plain.expose_secret())))
    }

    /// Signs with the newest key.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        mac(self.0[0].signing.expose_secret(), message)
    }

    /// Was this signed with a key of the list? Takes as long for a wrong signature as for a right one.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self.0.iter().fold(false, |found, key| {
            found | hmac(key.signing.expose_secret(), message).verify_slice(signature).is_ok()
        })
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(secret)")
    }
}

impl Place<'_> {
    /// Each part with its length before it, so that no two places read alike.
    fn associated(&self) -> Vec<u8> {
        let parts = [self.table.as_bytes(), self.row, self.column.as_bytes()];
        let mut bytes = Vec::new();
        for part in parts {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }
}

/// The key id, and the nonce with the ciphertext.
fn split(sealed: &[u8]) -> Result<(&[u8], &[u8]), SealError> {
    let [VERSION, length, rest @ ..] = sealed else { return Err(SealError::Damaged) };
    rest.split_at_checked(usize::from(*length)).ok_or(SealError::Damaged)
}

fn hmac(key: &[u8], message: &[u8]) -> Hmac<Sha256> {
    let mut hmac =
        <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
    hmac.update(message);
    hmac
}

fn mac(key: &[u8], message: &[u8]) -> Vec<u8> {
    hmac(key, message).finalize().into_bytes().to_vec()
}

/// Writes beside the path and links it there: the file is whole from its first moment, and whoever comes
/// second keeps the first one's.
fn create(path: &Path) -> std::io::Result<()> {
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&beside).and_then(|mut file| {
        writeln!(file, "{}", Keys::generate("k1").expose_secret())?;
        file.sync_all()
    });
    let linked = written.and_then(|()| match std::fs::hard_link(&beside, path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    // The link is what counts; a leftover beside it is only untidy.
    let _ = std::fs::remove_file(&beside);
    linked
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Place<'static> = Place { table: "connections", row: b"1", column: "refresh_token" };

    fn keys(ids: &[&str]) -> (Vec<SecretString>, Keys) {
        let entries: Vec<_> = ids.iter().map(|id| Keys::generate(id)).collect();
        let keys = Keys::parse(&entries).expect("generated keys are right");
        (entries, keys)
    }

    #[test]
    fn a_sealed_value_opens_in_its_own_place_only() {
        let (_, keys) = keys(&["a"]);
        let sealed = keys.seal(HERE, b"planted");
        assert!(!sealed.windows(7).any(|window| window == b"planted"));
        assert_eq!(keys.open(HERE, &sealed).expect("its place").expose_secret(), b"planted");
        for other in [
            Place { table: "sign_in_links", ..HERE },
            Place { row: b"2", ..HERE },
            Place { column: "verifier", ..HERE },
        ] {
            assert_eq!(keys.open(other, &sealed).err(), Some(SealError::Damaged));
        }
        for index in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[index] ^= 1;
            assert!(keys.open(HERE, &damaged).is_err(), "byte {index}");
            assert!(keys.open(HERE, &sealed[..index]).is_err(), "cut at {index}");
        }
        assert_ne!(sealed, keys.seal(HERE, b"planted"), "a nonce is never used twice");
    }

    #[test]
    fn the_newest_key_seals_and_the_old_ones_still_open() {
        let (entries, old) = keys(&["old"]);
        let sealed = old.seal(HERE, b"planted");
        let both = Keys::parse(&[Keys::generate("new"), entries[0].clone()]).expect("two keys");
        assert_eq!(both.open(HERE, &sealed).expect("the old key is there").expose_secret(), b"planted");
        let again = both.reseal(HERE, &sealed).expect("opens").expect("the old key sealed it");
        assert_eq!(both.reseal(HERE, &again), Ok(None));
        assert_eq!(old.open(HERE, &again).err(), Some(SealError::UnknownKey("new".into())));
        assert!(both.verify(b"m", &old.sign(b"m")));
        assert!(!old.verify(b"m", &both.sign(b"m")));
        assert!(!both.verify(b"n", &both.sign(b"m")));
    }

    #[test]
    fn a_wrong_key_is_refused_with_its_shape_and_never_its_text() {
        let short = format!("k:{}", STANDARD.encode([7; 16]));
        let cases: [(&str, &str); 5] = [
            ("plantedplanted", "14 characters without a colon"),
            ("bad id planted:AAAA", "an id that is not"),
            (":AAAA", "an id that is not"),
            ("k:planted!", "not base64"),
            (&short, "holds 16 bytes"),
        ];
        for (text, shape) in cases {
            let error = Keys::parse(&[text.into()]).expect_err(text).to_string();
            assert!(error.starts_with("vault.keys: entry 1 ") && error.contains(shape), "{error}");
            assert!(
                error.contains("expected `id:base64(32 bytes)`") && !error.contains("planted"),
                "{error}"
            );
        }
        let twice = [Keys::generate("k"), Keys::generate("k")];
        assert!(Keys::parse(&twice).expect_err("twice").to_string().contains("entry 2"));
        assert!(Keys::parse(&[]).is_err());
        assert_eq!(format!("{:?}", keys(&["k"]).1), "Keys(secret)");
    }

    #[test]
    fn only_one_machine_makes_its_own_keys() {
        let folder = std::env::temp_dir().join(format!("followthrough-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&folder).expect("a folder");
        let mut config = Config::default();
        config.database.url = format!("sqlite://{}/a.db?mode=rwc", folder.display()).into();
        let sealed = Keys::of(&config).expect("made").seal(HERE, b"planted");
        assert!(folder.join("a.keys").exists());
        Keys::of(&config).expect("read").open(HERE, &sealed).expect("the same key");
        for url in ["amqp://guest:planted@rabbit", "amqps://rabbit"] {
            config.broker.url = url.into();
            let error = Keys::of(&config).expect_err("many processes").to_string();
            assert!(error.starts_with("vault.keys: missing") && !error.contains("planted"), "{error}");
        }
        config.vault.keys = vec![Keys::generate("given")];
        Keys::of(&config).expect("given");
        std::fs::remove_dir_all(&folder).expect("ours");
    }

    #[test]
    fn keys_are_made_once_in_a_file_of_its_owner() {
        let path = std::env::temp_dir().join(format!("followthrough-{}.keys", uuid::Uuid::now_v7()));
        let first = Keys::load_or_create(&path).expect("made");
        let sealed = first.seal(HERE, b"planted");
        let second = Keys::load_or_create(&path).expect("read");
        assert_eq!(second.open(HERE, &sealed).expect("the same key").expose_secret(), b"planted");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode));
            assert_eq!(std::fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
            mode(0o644).expect("ours");
            let error = Keys::load_or_create(&path).expect_err("others may read it").to_string();
            assert!(error.contains("expected mode 600"), "{error}");
        }
        std::fs::remove_file(&path).expect("ours");
    }
}
