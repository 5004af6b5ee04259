//! What no source file may hold: paths of the machine that someone happened to write it on.

use std::{path::Path, process::Command};

use crate::{process, workspace};

/// The beginnings of paths that exist on one machine alone. Spelled in two halves, so that this file does not hold them itself.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/."), concat!("/Us", "ers/")];

/// The lines of a text that hold a path of some machine, with their numbers.
fn offending_lines(text: &str) -> Vec<(usize, &str)> {
    let starts_word = |line: &str, at: usize| {
        line[..at].chars().next_back().is_none_or(|before| !before.is_alphanumeric() && !"_}>~.".contains(before))
    };
    let offends = |line: &str| MACHINE_PATHS.iter().any(|path| line.match_indices(path).any(|(at, _)| starts_word(line, at)));
    text.lines().enumerate().filter(|(_, line)| offends(line)).map(|(index, line)| (index + 1, line)).collect()
}

/// The files that git knows or would add, without what is ignored.
fn project_files(root: &Path) -> Vec<String> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard", "-z"];
    let listed = process::output(Command::new("git").args(arguments).current_dir(root)).unwrap();
    listed.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

mod tests {
    use super::*;

    #[test]
    fn no_file_of_the_project_names_a_path_of_one_machine() {
        let root = workspace::root();
        let mut found = Vec::new();
        let mut texts = 0;
        for name in project_files(&root) {
            // A file that is deleted but still in the index, or one that is no text, has no lines to look at.
            let Ok(text) = std::fs::read_to_string(root.join(&name)) else { continue };
            texts += 1;
            found.extend(offending_lines(&text).into_iter().map(|(line, content)| format!("{name}:{line}: {content}")));
        }
        assert!(texts > 100, "only {texts} files were looked at");
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn a_path_of_a_machine_is_found_and_a_folder_of_that_name_is_not() {
        let home = MACHINE_PATHS[1];
        let text = format!("fine\nlet x = \"{home}alice/src\";\ncd overlay{home}x\n$DIR{home}\n");
        let found: Vec<usize> = offending_lines(&text).into_iter().map(|(line, _)| line).collect();
        assert_eq!(found, [2]);
    }
}
