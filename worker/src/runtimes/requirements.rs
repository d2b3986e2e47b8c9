//! Requirements: what a job's REQUIRED_LIBRARIES say, line by line, as far as the operator lets them.
//!
//! The form is that of pip's requirements files. What a line may do beyond naming a package and its versions is up to the
//! policy (setting `runtimes.allow`); whatever is refused is told with its line.
//!
//! This module must not know what is installed anywhere.

use std::collections::BTreeSet;
use std::str::FromStr;

use pep508_rs::{Requirement, VerbatimUrl, VersionOrUrl};
use spark_runtime_protocol::json::Fault;

/// More lines than this no list of requirements has.
const MOST_LINES: usize = 5000;
/// How much of a line is shown.
const SHOWN: usize = 80;

/// What lines may do, beside naming a package from the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    /// `name @ https://...`.
    Urls,
    /// `name @ git+https://...`.
    Vcs,
    /// `--hash=sha256:...`.
    Hashes,
    /// `--index-url` and its like.
    Indexes,
    /// `-r other.txt`, another file of the job.
    Nested,
}

impl Permission {
    /// Every permission with its word in the settings.
    pub const ALL: [(&'static str, Self); 5] = [
        ("urls", Self::Urls),
        ("vcs", Self::Vcs),
        ("hashes", Self::Hashes),
        ("indexes", Self::Indexes),
        ("nested", Self::Nested),
    ];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, permission)| *permission == self).map_or("", |(word, _)| word)
    }

    /// The permissions that a list of words stands for.
    #[must_use]
    pub fn of(words: &[String]) -> BTreeSet<Self> {
        let known = |word: &String| Self::ALL.iter().find(|(known, _)| known == word);
        words.iter().filter_map(known).map(|(_, permission)| *permission).collect()
    }
}

/// One requirement.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Where it stands: pointer of the asset.
    pub pointer: String,
    /// The file, when it is not the asset's own.
    pub file: Option<String>,
    /// Its line, from 1.
    pub line: usize,
    /// What it asks for.
    pub requirement: Requirement<VerbatimUrl>,
    /// `--hash` options, as they stand.
    pub hashes: Vec<String>,
}

impl Wanted {
    /// The place and the requirement, in words.
    #[must_use]
    pub fn words(&self) -> String {
        let file = self.file.as_ref().map_or_else(String::new, |file| format!("{file}, "));
        // A URL may hold a secret.
        let what = match &self.requirement.version_or_url {
            Some(VersionOrUrl::Url(_)) => format!("{} from a URL", self.requirement.name),
            _ => self.requirement.to_string().chars().take(SHOWN).collect(),
        };
        format!("{file}line {}: {what}", self.line)
    }

    /// The requirement as it is handed to an installer.
    #[must_use]
    pub fn text(&self) -> String {
        let hashes: String = self.hashes.iter().map(|hash| format!(" {hash}")).collect();
        format!("{}{hashes}", self.requirement)
    }
}

/// All that a job requires.
#[derive(Debug, Clone, Default)]
pub struct Requirements {
    /// The requirements, in order.
    pub all: Vec<Wanted>,
    /// Options for an installer that say where packages come from, as they stand.
    pub indexes: Vec<String>,
}

/// A list of requirements in a job.
#[derive(Debug, Clone)]
pub struct List {
    /// Pointer of the asset.
    pub pointer: String,
    /// Its path in the working directory; empty for the primary source.
    pub path: String,
    /// Its bytes.
    pub content: Vec<u8>,
}

/// Reads every list. `nested` finds another file of the job by its path.
///
/// # Errors
/// Every line that is no requirement or that the policy does not take.
pub fn read(
    lists: &[List],
    allowed: &BTreeSet<Permission>,
    nested: &dyn Fn(&str) -> Option<Vec<u8>>,
) -> Result<Requirements, Vec<Fault>> {
    let mut reader = Reader {
        allowed,
        nested,
        found: Requirements::default(),
        faults: Vec::new(),
        files: BTreeSet::new(),
        lines: 0,
    };
    for list in lists {
        reader.files.insert(list.path.clone());
        reader.list(&list.pointer, None, &list.path, &list.content);
    }
    if reader.faults.is_empty() { Ok(reader.found) } else { Err(reader.faults) }
}

struct Reader<'a> {
    allowed: &'a BTreeSet<Permission>,
    nested: &'a dyn Fn(&str) -> Option<Vec<u8>>,
    found: Requirements,
    faults: Vec<Fault>,
    /// Files that were read: a circle ends.
    files: BTreeSet<String>,
    lines: usize,
}

/// Where a line stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    pointer: &'a str,
    file: Option<&'a str>,
    line: usize,
}

impl Reader<'_> {
    fn fault(&mut self, place: Place<'_>, words: &str) {
        let file = place.file.map_or_else(String::new, |file| format!("{file}, "));
        self.faults.push(Fault::new(place.pointer, format!("{file}line {}: {words}", place.line)));
    }

    fn may(&mut self, permission: Permission, what: &str, place: Place<'_>) -> bool {
        let may = self.allowed.contains(&permission);
        if !may {
            let word = permission.word();
            self.fault(
                place,
                &format!("{what} is not taken by this worker (runtimes.allow has no \"{word}\")"),
            );
        }
        may
    }

    fn list(&mut self, pointer: &str, file: Option<&str>, path: &str, content: &[u8]) {
        let text = match std::str::from_utf8(content) {
            Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
            Err(error) => {
                let file = file.map_or_else(String::new, |file| format!("{file} "));
                return self.faults.push(Fault::new(pointer, format!("{file}is no text in UTF-8: {error}")));
            }
        };
        for (line, text) in joined(text) {
            self.lines += 1;
            if self.lines > MOST_LINES {
                let words = format!("has more than {MOST_LINES} lines of requirements");
                return self.faults.push(Fault::new(pointer, words));
            }
            self.line(Place { pointer, file, line }, path, &text);
        }
    }

    fn line(&mut self, place: Place<'_>, path: &str, text: &str) {
        if text.contains("${") {
            return self.fault(place, "environment variables are not filled in");
        }
        if text.starts_with('-') {
            return self.option(place, path, text);
        }
        // Options of one requirement stand behind it.
        let mut parts = text.split_whitespace();
        let own: Vec<&str> = parts.by_ref().take_while(|part| !part.starts_with("--")).collect();
        let options: Vec<&str> = text.split_whitespace().skip(own.len()).collect();
        let Some(hashes) = self.hashes(place, &options) else { return };
        let what = own.join(" ");
        if let Some((permission, kind)) = unnamed(&what) {
            if self.may(permission, kind, place) {
                self.fault(place, &format!("{kind} needs a name; write it as name @ URL"));
            }
            return;
        }
        match Requirement::<VerbatimUrl>::from_str(&what) {
            Err(error) => {
                let reason = error.to_string();
                let reason = reason.lines().next().unwrap_or_default();
                let shown: String = what.chars().take(SHOWN).collect();
                // Whatever has an address in it may have a secret in it.
                let shown = if shown.contains("://") { String::new() } else { format!("{shown:?} ") };
                self.fault(place, &format!("{shown}is no requirement: {reason}"));
            }
            Ok(requirement) => {
                if let Some(VersionOrUrl::Url(url)) = &requirement.version_or_url {
                    let is_vcs = url.to_string().split(':').next().is_some_and(|scheme| scheme.contains('+'));
                    let (permission, kind) = if is_vcs {
                        (Permission::Vcs, "a link to version control")
                    } else {
                        (Permission::Urls, "a URL")
                    };
                    if !self.may(permission, kind, place) {
                        return;
                    }
                }
                self.found.all.push(Wanted {
                    pointer: place.pointer.to_owned(),
                    file: place.file.map(str::to_owned),
                    line: place.line,
                    requirement,
                    hashes,
                });
            }
        }
    }

    /// The hashes among the options of one requirement; `None` when something is not taken.
    fn hashes(&mut self, place: Place<'_>, options: &[&str]) -> Option<Vec<String>> {
        let mut hashes = Vec::new();
        for option in options {
            let fits = option.strip_prefix("--hash=").and_then(|hash| hash.split_once(':')).is_some_and(
                |(kind, digits)| {
                    ["sha256", "sha384", "sha512"].contains(&kind)
                        && !digits.is_empty()
                        && digits.bytes().all(|b| b.is_ascii_hexdigit())
                },
            );
            if !fits {
                let name = option.split('=').next().unwrap_or_default();
                let name: String = name.chars().take(SHOWN).collect();
                self.fault(
                    place,
                    &format!("{name:?} behind a requirement is not taken; only --hash=sha256:... may be"),
                );
                return None;
            }
            hashes.push((*option).to_owned());
        }
        if !hashes.is_empty() && !self.may(Permission::Hashes, "a hash", place) {
            return None;
        }
        Some(hashes)
    }

    fn option(&mut self, place: Place<'_>, path: &str, text: &str) {
        let (name, value) = split_option(text);
        match name {
            "-r" | "--requirement" => {
                if self.may(Permission::Nested, "another file of requirements", place) {
                    self.other_file(place, path, value);
                }
            }
            "-i" | "--index-url" | "--extra-index-url" | "-f" | "--find-links" | "--no-index" => {
                if !self.may(Permission::Indexes, "an index of its own", place) {
                    return;
                }
                if value
                    .split_once("://")
                    .is_some_and(|(_, rest)| rest.split('/').next().is_some_and(|host| host.contains('@')))
                {
                    return self.fault(place, "an index with credentials in its address is not taken");
                }
                let long = match name {
                    "-i" => "--index-url",
                    "-f" => "--find-links",
                    other => other,
                };
                self.found.indexes.push(if value.is_empty() {
                    long.to_owned()
                } else {
                    format!("{long}={value}")
                });
            }
            "-e" | "--editable" => {
                self.fault(place, "an editable install is not taken; write it as name @ URL")
            }
            _ => {
                let name: String = name.chars().take(SHOWN).collect();
                self.fault(place, &format!("the option {name} is not taken"));
            }
        }
    }

    fn other_file(&mut self, place: Place<'_>, path: &str, value: &str) {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let other = if folder.is_empty() { value.to_owned() } else { format!("{folder}/{value}") };
        if self.files.contains(&other) {
            return;
        }
        match (self.nested)(&other) {
            None => {
                let shown: String = other.chars().take(SHOWN).collect();
                self.fault(place, &format!("{shown:?} is no file of the job"));
            }
            Some(content) => {
                self.files.insert(other.clone());
                self.list(place.pointer, Some(&other), &other, &content);
            }
        }
    }
}

/// What stands for a package and does not name it.
fn unnamed(text: &str) -> Option<(Permission, &'static str)> {
    let first = text.split(['@', ';', ' ']).next().unwrap_or_default();
    if ["git+", "hg+", "svn+", "bzr+"].iter().any(|vcs| text.starts_with(vcs)) {
        return Some((Permission::Vcs, "a link to version control"));
    }
    let is_path = first.starts_with(['.', '/', '~']) || first.ends_with(".whl") || first.ends_with(".tar.gz");
    (first.contains("://") || first.starts_with("file:") || is_path)
        .then_some((Permission::Urls, "a URL or a file"))
}

/// The name and the value of an option, in the ways in which they are written: `--name value`, `--name=value`, `-rvalue`.
fn split_option(text: &str) -> (&str, &str) {
    let (name, value) = match text.find([' ', '\t', '=']) {
        Some(at) => (&text[..at], text[at + 1..].trim_start_matches([' ', '\t', '='])),
        None => (text, ""),
    };
    if !name.starts_with("--") && name.len() > 2 && name.is_char_boundary(2) {
        return (&text[..2], text[2..].trim_start());
    }
    (name, value.trim())
}

/// The lines with what continues them, without comments, each with the number of its first line; empty ones are left out.
fn joined(text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (index, line) in text.lines().enumerate() {
        let (number, mut whole) = open.take().unwrap_or((index + 1, String::new()));
        let is_comment = line.trim_start().starts_with('#');
        match line.strip_suffix('\\') {
            Some(line) if !is_comment => {
                whole.push_str(line);
                open = Some((number, whole));
            }
            _ => {
                if !is_comment {
                    whole.push_str(line);
                }
                lines.push((number, whole));
            }
        }
    }
    lines.extend(open);
    lines
        .into_iter()
        .map(|(number, line)| (number, without_comment(&line).trim().to_owned()))
        .filter(|(_, line)| !line.is_empty())
        .collect()
}

/// A comment begins at the line's start or behind a space: an address may have a `#` in it.
fn without_comment(line: &str) -> &str {
    let begins = |(at, _): &(usize, char)| *at == 0 || line[..*at].ends_with([' ', '\t']);
    line.char_indices().filter(|(_, c)| *c == '#').find(begins).map_or(line, |(at, _)| &line[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<List> {
        vec![List {
            pointer: "/a".to_owned(),
            path: "env/requirements.txt".to_owned(),
            content: text.as_bytes().to_vec(),
        }]
    }

    fn all() -> BTreeSet<Permission> {
        Permission::ALL.map(|(_, permission)| permission).into_iter().collect()
    }

    fn wanted(text: &str) -> Vec<String> {
        let found = read(&list(text), &BTreeSet::new(), &|_| None).unwrap();
        found.all.iter().map(|wanted| format!("{} {}", wanted.line, wanted.requirement)).collect()
    }

    fn faults(text: &str, allowed: &BTreeSet<Permission>) -> Vec<String> {
        let found = read(&list(text), allowed, &|_| None);
        found.err().unwrap_or_default().into_iter().map(|fault| fault.message).collect()
    }

    #[test]
    fn comments_continuations_extras_and_markers_are_read_as_pip_reads_them() {
        let text = "\u{feff}# libraries\r\n\r\nScikit_Learn[alldeps] >=1.2,<2 ; python_version >= '3.8'  # why\r\n   \
                    pandas==2.*\nnumpy \\\n  >= 1.20 \\\n  , != 1.24\n\n# a comment does not go on \\\nscipy\nlast\\";
        assert_eq!(
            wanted(text),
            [
                "3 scikit-learn[alldeps]>=1.2,<2 ; python_full_version >= '3.8'",
                "4 pandas==2.*",
                "5 numpy>=1.20,!=1.24",
                "10 scipy",
                "11 last"
            ]
        );
    }

    #[test]
    fn whatever_reaches_out_is_refused_with_its_line_as_long_as_no_policy_takes_it() {
        let text = "-r other.txt\n--requirement=other.txt\n-i https://x/simple\n--extra-index-url https://u:s3cret@x/simple\n\
                    a @ https://s3cret@host/a.whl\nb @ git+https://host/b.git\n-e .\n--editable=git+https://host/c\n\
                    c==1 --hash=sha256:00ff\nhttps://host/d.whl\n./local\ngit+ssh://host/e.git\n--no-binary :all:\n\
                    d==1 --global-option=x\n-c constraints.txt\n${HOME}\n--pre\n-fdir\n??\nx =!= 1\n";
        let found = faults(text, &BTreeSet::new());
        let lines: Vec<_> = found.iter().map(|fault| fault.split(':').next().unwrap().to_owned()).collect();
        let expected: Vec<_> = (1..=20).map(|line| format!("line {line}")).collect();
        assert_eq!(lines, expected, "{found:#?}");
        assert!(!found.iter().any(|fault| fault.contains("s3cret")), "{found:#?}");
        assert!(
            found[0].ends_with("is not taken by this worker (runtimes.allow has no \"nested\")"),
            "{found:#?}"
        );
    }

    #[test]
    fn what_the_policy_takes_is_kept_and_what_nobody_takes_is_still_refused() {
        let text = "-i https://x/simple\n-f dir\na @ https://host/a.whl\nb @ git+https://host/b.git\nc==1 --hash=sha256:00ff --hash=sha256:11\n";
        let found = read(&list(text), &all(), &|_| None).unwrap();
        assert_eq!(found.indexes, ["--index-url=https://x/simple", "--find-links=dir"]);
        assert_eq!(found.all.len(), 3);
        assert_eq!(found.all[2].text(), "c==1 --hash=sha256:00ff --hash=sha256:11");
        let text = "-e .\n--pre\nhttps://host/x.whl\n--index-url https://user:p@host/\n-r missing.txt\nd --hash=md5:00\n";
        assert_eq!(faults(text, &all()).len(), 6);
    }

    #[test]
    fn other_files_of_the_job_are_read_once_and_a_circle_ends() {
        let files = |path: &str| match path {
            "env/more.txt" => Some(b"b\n-r requirements.txt\n-r more.txt\n-r deep/last.txt".to_vec()),
            "env/deep/last.txt" => Some(b"c\n???".to_vec()),
            _ => None,
        };
        let error = read(&list("a\n-r more.txt\n-r more.txt"), &all(), &files).unwrap_err();
        assert_eq!(error.len(), 1);
        assert!(error[0].message.starts_with("env/deep/last.txt, line 2: "), "{error:?}");
    }

    #[test]
    fn what_is_no_text_or_has_no_end_is_refused() {
        let bytes = [List { pointer: "/a".to_owned(), path: String::new(), content: vec![0xff, 0xfe, 0] }];
        let error = read(&bytes, &BTreeSet::new(), &|_| None).unwrap_err();
        assert!(error[0].message.starts_with("is no text in UTF-8"), "{error:?}");
        assert!(faults(&"a\n".repeat(MOST_LINES + 1), &BTreeSet::new())[0].contains("more than 5000 lines"));
    }
}
