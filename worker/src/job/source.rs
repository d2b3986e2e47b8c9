//! What the source of a model defines: its functions, and the smart tags that say what they are for.
//!
//! The grammar is that of tree-sitter, which makes the best of any text; whether a source is Python at all is for the
//! runtime's own Python to say ([`python_objects`]).
//!
//! This module must not know what a job asks for.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Stdio};

use serde::Deserialize;
use tree_sitter::{Node, Parser};

use super::tags::{Aspect, Tag};

/// The most remarks about misspelt tags that are kept.
const MOST_REMARKS: usize = 10;

/// How many positional arguments a function takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arity {
    /// Without these it cannot be called.
    pub required: usize,
    /// More than these it does not take; `None` for `*args`.
    pub most: Option<usize>,
    /// It has keyword-only parameters without a default: no positional call can satisfy it.
    pub needs_keywords: bool,
}

impl Arity {
    /// Whether a call with `count` positional arguments fits.
    #[must_use]
    pub fn takes(self, count: usize) -> bool {
        !self.needs_keywords && self.required <= count && self.most.is_none_or(|most| count <= most)
    }
}

/// A function at the top level of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// The line of its `def`, from 1.
    pub line: usize,
    /// What it takes.
    pub arity: Arity,
    /// `async def`.
    pub is_async: bool,
    /// A decorator may make anything of it.
    pub is_decorated: bool,
    /// The smart tags directly above it, without `modelop.` or `fastscore.`.
    pub tags: Vec<String>,
    /// The row from 0 at which its definition begins, decorators included.
    from: usize,
}

/// A tag that says something of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotTag {
    /// What it is about.
    pub aspect: Aspect,
    /// The slot as written: a number, a name, `$all`, `$in` or `$out`.
    pub slot: String,
    /// What is said.
    pub value: String,
    /// Its line, from 1.
    pub line: usize,
}

/// A word of a tag, and the line where it stands, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The word.
    pub word: String,
    /// The line.
    pub line: usize,
}

/// What a source defines at its top level.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// Its functions, in order; of two with one name both.
    pub functions: Vec<Function>,
    /// Other names that it binds: imports, classes, assignments.
    pub other_names: BTreeSet<String>,
    /// It may bind names that nobody can see in it (`from x import *`, `globals()`, `exec`).
    pub binds_unseen: bool,
    /// The grammar stumbled: the source may be no Python.
    pub is_doubtful: bool,
    /// The tags about slots, in order.
    pub slot_tags: Vec<SlotTag>,
    /// The functions that `action` tags name.
    pub actions: Vec<Said>,
    /// The tags that should stand above a function and do not.
    pub loose: Vec<Said>,
    /// What looks like a misspelt tag, as sentences.
    pub remarks: Vec<String>,
}

impl Source {
    /// Reads a source. Text that is no Python gives what can be made out, and [`Source::is_doubtful`].
    #[must_use]
    pub fn read(text: &str) -> Self {
        let mut parser = Parser::new();
        let tree = match parser.set_language(&tree_sitter_python::LANGUAGE.into()) {
            Ok(()) => parser.parse(text, None),
            Err(error) => {
                tracing::error!(%error, "the grammar of Python does not fit its parser");
                None
            }
        };
        let Some(tree) = tree else {
            return Self { binds_unseen: true, is_doubtful: true, ..Self::default() };
        };
        let mut source = Self { is_doubtful: tree.root_node().has_error(), ..Self::default() };
        source.block(tree.root_node(), text);
        source.functions.sort_by_key(|function| function.line);
        source.tag(&whole_line_comments(tree.root_node(), text), text);
        source
    }

    /// The last function of this name: that is what the name stands for once the module is loaded.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<&Function> {
        self.functions.iter().rev().find(|function| function.name == name)
    }

    /// The functions that one of `tags` names, in order.
    #[must_use]
    pub fn tagged(&self, tags: &[&str]) -> Vec<&Function> {
        self.functions
            .iter()
            .filter(|function| function.tags.iter().any(|tag| tags.contains(&tag.as_str())))
            .collect()
    }

    /// The names of all functions, each once.
    #[must_use]
    pub fn function_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for function in &self.functions {
            if !names.contains(&function.name.as_str()) {
                names.push(&function.name);
            }
        }
        names
    }

    /// Takes in the statements that run when the module is loaded. Without recursion, and into blocks alone: a source may
    /// be nested as deep as it likes.
    fn block(&mut self, root: Node<'_>, text: &str) {
        let mut stack = vec![root];
        while let Some(node) = stack.pop() {
            match node.kind() {
                "function_definition" => self.definition(node, node, text),
                "decorated_definition" => {
                    if let Some(definition) = node.child_by_field_name("definition") {
                        self.definition(definition, node, text);
                    }
                }
                "class_definition" => self.name_of(node, text),
                "import_statement" | "import_from_statement" => self.import(node, text),
                "expression_statement" => self.expression(node, text),
                // What is in a branch or a loop of the module is at its top level too.
                "module"
                | "block"
                | "ERROR"
                | "if_statement"
                | "elif_clause"
                | "else_clause"
                | "try_statement"
                | "except_clause"
                | "except_group_clause"
                | "finally_clause"
                | "with_statement"
                | "for_statement"
                | "while_statement"
                | "match_statement"
                | "case_clause" => {
                    let mut cursor = node.walk();
                    let children: Vec<_> = node.named_children(&mut cursor).collect();
                    stack.extend(children.into_iter().rev());
                }
                _ => {}
            }
        }
    }

    fn definition(&mut self, definition: Node<'_>, outer: Node<'_>, text: &str) {
        if definition.kind() == "class_definition" {
            return self.name_of(definition, text);
        }
        let Some(name) = definition.child_by_field_name("name") else { return };
        let parameters = definition.child_by_field_name("parameters");
        self.functions.push(Function {
            name: words(name, text).to_owned(),
            line: definition.start_position().row + 1,
            arity: parameters
                .map_or(Arity { required: 0, most: None, needs_keywords: false }, |p| arity(p, text)),
            is_async: words(definition, text).starts_with("async"),
            is_decorated: outer.id() != definition.id(),
            tags: Vec::new(),
            from: outer.start_position().row,
        });
    }

    fn name_of(&mut self, node: Node<'_>, text: &str) {
        if let Some(name) = node.child_by_field_name("name") {
            self.other_names.insert(words(name, text).to_owned());
        }
    }

    fn import(&mut self, statement: Node<'_>, text: &str) {
        let mut cursor = statement.walk();
        for child in statement.named_children(&mut cursor) {
            match child.kind() {
                "wildcard_import" => self.binds_unseen = true,
                "aliased_import" => {
                    if let Some(alias) = child.child_by_field_name("alias") {
                        self.other_names.insert(words(alias, text).to_owned());
                    }
                }
                "dotted_name" => {
                    let first = words(child, text).split('.').next().unwrap_or_default();
                    self.other_names.insert(first.trim().to_owned());
                }
                _ => {}
            }
        }
    }

    fn expression(&mut self, statement: Node<'_>, text: &str) {
        let said = words(statement, text);
        if ["globals(", "exec(", "setattr(", "vars("].iter().any(|call| said.contains(call)) {
            self.binds_unseen = true;
        }
        let mut cursor = statement.walk();
        for child in statement.named_children(&mut cursor).filter(|child| child.kind() == "assignment") {
            let mut assignment = Some(child);
            // `a = b = f`: an assignment's right side may be one again.
            while let Some(current) = assignment {
                if let Some(left) = current.child_by_field_name("left") {
                    self.targets(left, text);
                }
                assignment =
                    current.child_by_field_name("right").filter(|right| right.kind() == "assignment");
            }
        }
    }

    fn targets(&mut self, target: Node<'_>, text: &str) {
        let mut stack = vec![target];
        while let Some(target) = stack.pop() {
            match target.kind() {
                "identifier" => {
                    self.other_names.insert(words(target, text).to_owned());
                }
                "pattern_list" | "tuple_pattern" | "list_pattern" | "list_splat_pattern" => {
                    let mut cursor = target.walk();
                    stack.extend(target.named_children(&mut cursor));
                }
                _ => {}
            }
        }
    }

    /// Takes in the tags. One that says what a function is for belongs to the function whose definition, decorators
    /// included, is the first thing below it.
    fn tag(&mut self, comments: &[(usize, &str)], text: &str) {
        let lines: Vec<&str> = text.lines().collect();
        let is_comment: HashSet<usize> = comments.iter().map(|(row, _)| *row).collect();
        // For every row the first one from there on that says something.
        let mut said_from = vec![None; lines.len() + 1];
        for row in (0..lines.len()).rev() {
            let says_nothing = lines[row].trim().is_empty() || is_comment.contains(&row);
            said_from[row] = if says_nothing { said_from[row + 1] } else { Some(row) };
        }
        for (row, comment) in comments {
            let Some(tag) = Tag::of(comment) else { continue };
            let line = row + 1;
            match tag {
                Tag::Above(word) => {
                    let below = said_from.get(row + 1).copied().flatten();
                    match self.function_from(*row, below) {
                        Some(function) => function.tags.push(word.to_owned()),
                        None => self.loose.push(Said { word: word.to_owned(), line }),
                    }
                }
                Tag::Action(name) => self.actions.push(Said { word: name.to_owned(), line }),
                Tag::OfSlot { aspect, slot, value } => {
                    self.slot_tags.push(SlotTag {
                        aspect,
                        slot: slot.to_owned(),
                        value: value.to_owned(),
                        line,
                    });
                }
                Tag::Misspelt(meant) => self.remark(comment, line, meant),
            }
        }
    }

    fn remark(&mut self, comment: &str, line: usize, meant: &str) {
        if self.remarks.len() < MOST_REMARKS {
            let shown: String = comment.chars().take(60).collect();
            self.remarks
                .push(format!("line {line} of the source, {shown:?}, says nothing; did you mean {meant}?"));
        }
    }

    /// The function that a comment in `row` stands directly above, when `below` is the first row after it that says
    /// something; or the one among whose decorators it stands.
    fn function_from(&mut self, row: usize, below: Option<usize>) -> Option<&mut Function> {
        // Functions stand in the order of their lines.
        let next = self.functions.partition_point(|function| function.line - 1 < row);
        let function = self.functions.get_mut(next)?;
        let is_within = (function.from..function.line - 1).contains(&row);
        (is_within || below == Some(function.from)).then_some(function)
    }
}

fn words<'a>(node: Node<'_>, text: &'a str) -> &'a str {
    node.utf8_text(text.as_bytes()).unwrap_or_default()
}

/// Every comment that has its line to itself, with its row from 0.
fn whole_line_comments<'a>(root: Node<'_>, text: &'a str) -> Vec<(usize, &'a str)> {
    let mut comments = Vec::new();
    let mut stack = vec![root];
    while let Some(node) = stack.pop() {
        if node.kind() == "comment" {
            let line_start = text[..node.start_byte()].rfind('\n').map_or(0, |end| end + 1);
            let before = text[line_start..node.start_byte()].trim_start_matches('\u{feff}');
            if before.trim().is_empty() {
                comments.push((node.start_position().row, words(node, text)));
            }
        }
        let mut cursor = node.walk();
        stack.extend(node.children(&mut cursor));
    }
    comments.sort_unstable();
    comments
}

fn arity(parameters: Node<'_>, text: &str) -> Arity {
    let mut arity = Arity { required: 0, most: Some(0), needs_keywords: false };
    let mut keywords_only = false;
    let mut cursor = parameters.walk();
    for parameter in parameters.named_children(&mut cursor) {
        // `x: int` is a typed parameter around an identifier, `*args: int` one around a splat.
        let inner = match parameter.kind() {
            "typed_parameter" => parameter.named_child(0).unwrap_or(parameter),
            _ => parameter,
        };
        match inner.kind() {
            "identifier" if keywords_only => arity.needs_keywords = true,
            "identifier" | "tuple_pattern" => {
                arity.required += 1;
                arity.most = arity.most.map(|most| most + 1);
            }
            "default_parameter" | "typed_default_parameter" if !keywords_only => {
                arity.most = arity.most.map(|most| most + 1);
            }
            "list_splat_pattern" => {
                arity.most = None;
                keywords_only = true;
            }
            "keyword_separator" => keywords_only = true,
            _ if words(inner, text) == "*" => keywords_only = true,
            _ => {}
        }
    }
    arity
}

/// A source that Python refuses.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Objection {
    /// The line, from 1; 0 when Python names none.
    pub line: u32,
    /// The column, from 1; 0 when Python names none.
    pub column: u32,
    /// Python's own words.
    pub message: String,
}

/// Compiles and does not run. The alarm ends a compilation that takes for ever, whoever waits for it.
const COMPILE: &str = r#"
import json, signal, sys
signal.alarm(20)
try:
    compile(sys.stdin.buffer.read(), "model_source_code.py", "exec", dont_inherit=True)
except SyntaxError as error:
    json.dump({"line": error.lineno or 0, "column": max(error.offset or 0, 0), "message": str(error.msg)}, sys.stdout)
except (ValueError, RecursionError, MemoryError, OverflowError) as error:
    json.dump({"line": 0, "column": 0, "message": str(error) or type(error).__name__}, sys.stdout)
"#;

/// Asks `python` whether it takes `text` as a module. Blocks until it has answered, 20 seconds at most.
///
/// # Errors
/// When Python cannot be asked; the source may be right then.
pub fn python_objects(python: &OsStr, text: &str) -> std::io::Result<Option<Objection>> {
    let mut child = Command::new(python)
        .args(["-I", "-S", "-c", COMPILE])
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output()?;
    written?;
    if !output.status.success() {
        return Err(std::io::Error::other(format!(
            "{} ended with {}",
            python.to_string_lossy(),
            output.status
        )));
    }
    if output.stdout.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&output.stdout).map(Some).map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(text: &str) -> Vec<(String, Vec<String>)> {
        Source::read(text).functions.into_iter().map(|function| (function.name, function.tags)).collect()
    }

    fn arity_of(parameters: &str) -> Arity {
        Source::read(&format!("def f({parameters}):\n    pass\n")).functions[0].arity
    }

    #[test]
    fn a_tag_belongs_to_the_function_directly_below_it() {
        let text = "import x\n\n# modelop.init\ndef begin():\n    pass\n\n#modelop.score\n# explained here\n@x.y(\n  1)\ndef run(a, b, c):\n    pass\n# fastscore.metrics\n\ndef m(a,b,c): pass\n";
        let expected = [("begin", vec!["init"]), ("run", vec!["score"]), ("m", vec!["metrics"])];
        let expected: Vec<_> = expected
            .map(|(name, tags)| (name.to_owned(), tags.into_iter().map(str::to_owned).collect()))
            .to_vec();
        assert_eq!(tags(text), expected);
        assert_eq!(tags(&text.replace('\n', "\r\n")), expected);
        assert_eq!(tags(&format!("\u{feff}{text}")), expected);
    }

    #[test]
    fn what_only_looks_like_a_tag_or_a_function_is_neither() {
        let text = "TEXT = '''\n# modelop.score\ndef score(a, b, c): pass\n'''\nx = 1  # modelop.score\ndef other(a): pass\n# modelop.score\nx = 2\ndef later(): pass\n# modelop.scores it\ndef last(): pass\n";
        let source = Source::read(text);
        assert_eq!(source.function_names(), ["other", "later", "last"]);
        assert!(source.functions.iter().all(|function| function.tags.is_empty()), "{:?}", source.functions);
        assert_eq!(source.loose, [Said { word: "score".into(), line: 7 }]);
    }

    #[test]
    fn decorators_of_any_shape_stand_between_a_tag_and_its_function() {
        let text = "# modelop.score\n@wraps(\n  '''\ndef no(): pass\n@x\n''',\n)\n# modelop.metrics\n@other\nasync def run(a): pass\n# modelop.init\n@c\nclass C:\n    # modelop.train\n    def m(self): pass\n";
        assert_eq!(tags(text), [("run".to_owned(), vec!["score".to_owned(), "metrics".to_owned()])]);
        let loose: Vec<_> = Source::read(text).loose.into_iter().map(|said| (said.word, said.line)).collect();
        assert_eq!(loose, [("init".to_owned(), 11), ("train".to_owned(), 14)]);
    }

    #[test]
    fn tags_about_slots_and_actions_stand_anywhere_and_slips_are_told() {
        let text = "# fastscore.action: run\n# modelop.schema.0: in.avsc\nTEXT = '''\n# modelop.schema.1: no.avsc\n'''\ndef run(x):\n    # modelop.recordsets.$all: true\n    return x\n# modelop.scroe\n";
        let source = Source::read(text);
        assert_eq!(source.actions, [Said { word: "run".into(), line: 1 }]);
        let tags: Vec<_> =
            source.slot_tags.iter().map(|tag| (tag.aspect, tag.slot.as_str(), tag.line)).collect();
        assert_eq!(tags, [(Aspect::Schema, "0", 2), (Aspect::Recordsets, "$all", 7)]);
        assert_eq!(
            source.remarks,
            ["line 9 of the source, \"# modelop.scroe\", says nothing; did you mean score?"]
        );
    }

    #[test]
    fn functions_in_branches_of_the_module_count_and_nested_ones_do_not() {
        let source = Source::read(
            "try:\n    import a\nexcept ImportError:\n    def a(): pass\nif True:\n    def b(): pass\nclass C:\n    def m(self): pass\ndef outer():\n    def inner(): pass\n",
        );
        assert_eq!(source.function_names(), ["a", "b", "outer"]);
        assert!(source.other_names.contains("C"));
    }

    #[test]
    fn names_that_are_bound_without_a_def_are_known() {
        let source =
            Source::read("import os.path as p, sys\nfrom h import score, init as i\na, (b, c) = d = f()\n");
        for name in ["p", "sys", "score", "i", "a", "b", "c", "d"] {
            assert!(source.other_names.contains(name), "{name} {:?}", source.other_names);
        }
        assert!(!source.binds_unseen);
        assert!(Source::read("from h import *\n").binds_unseen);
        assert!(Source::read("globals()['score'] = f\n").binds_unseen);
    }

    #[test]
    fn the_number_of_arguments_is_counted_as_python_counts_it() {
        assert!(arity_of("a, b, c").takes(3));
        assert!(!arity_of("a, b, c").takes(2));
        assert!(arity_of("a, b: list, c: dict = None").takes(2));
        assert!(arity_of("*args").takes(3));
        assert!(arity_of("a, *rest, k=1, **kw").takes(3));
        assert!(arity_of("").takes(0));
        assert!(!arity_of("").takes(1));
        assert!(!arity_of("a, *, k").takes(1));
        assert!(arity_of("a, *, k=2").takes(1));
        assert!(arity_of("a, /, b, c").takes(3));
    }

    #[test]
    fn a_source_may_be_as_deep_and_as_long_as_it_likes() {
        let deep = format!(
            "if {}1{}: pass\n{}x{} = y\n",
            "(".repeat(60_000),
            ")".repeat(60_000),
            "[".repeat(20_000),
            "]".repeat(20_000)
        );
        // As much stack as a thread has that reads jobs.
        let reading =
            std::thread::Builder::new().stack_size(2 << 20).spawn(move || Source::read(&deep)).unwrap();
        reading.join().unwrap();
        let many = "# modelop.x\n".repeat(20_000) + "def f(): pass\n";
        assert_eq!(Source::read(&many).functions[0].tags.len(), 20_000);
    }

    #[test]
    fn python_itself_says_where_a_source_is_wrong() {
        let python = OsStr::new("python3");
        assert!(Source::read("def f(:\n  pass").is_doubtful);
        let objection = python_objects(python, "x = 1\ndef f(:\n  pass").unwrap().unwrap();
        assert_eq!(objection.line, 2);
        assert_eq!(python_objects(python, "print('hi')\n").unwrap(), None);
        assert!(python_objects(python, "a\0b").unwrap().is_some());
        assert!(python_objects(OsStr::new("/no/such/python"), "x").is_err());
    }
}
