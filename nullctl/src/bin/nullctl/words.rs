//! A command line in one text becomes words: blanks between them, quotes and backslash as a shell reads them, and nothing else: no
//! variables, no substitution, no operators.

/// Splits; what is wrong is said in words.
pub fn split(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next().ok_or("a single quote is not closed")? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next().ok_or("a double quote is not closed")? {
                        '"' => break,
                        '\\' => match characters.next().ok_or("a double quote is not closed")? {
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            '\n' => {}
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => word
                .get_or_insert_default()
                .push(characters.next().ok_or("nothing stands after the last backslash")?),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    match words.first() {
        None => Err("there is no word in it".into()),
        Some(first) if first.is_empty() => Err("the program's name is empty".into()),
        Some(_) => Ok(words),
    }
}

/// The words so that one sees where each ends.
pub fn shown(words: &[String]) -> String {
    words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_as_a_shell_splits_them_and_nothing_is_run() {
        for (text, words) in [
            ("cargo test", &["cargo", "test"][..]),
            ("  cargo\ttest  \n", &["cargo", "test"]),
            ("sh -c 'a && b'", &["sh", "-c", "a && b"]),
            (r#"x "a b" c\ d '' "" "\"\\\$\n""#, &["x", "a b", "c d", "", "", "\"\\$\\n"]),
            ("a'b'\"c\"d", &["abcd"]),
            ("x $(id) `id` $HOME a;b|c>d *", &["x", "$(id)", "`id`", "$HOME", "a;b|c>d", "*"]),
        ] {
            assert_eq!(split(text).unwrap(), words, "{text}");
        }
        for wrong in ["", "  ", "a 'b", "a \"b", "a \"b\\", "a \\", "'' x"] {
            assert!(split(wrong).is_err(), "{wrong}");
        }
        assert_eq!(shown(&["sh".into(), "-c".into(), "a && b\u{1b}".into()]), r#""sh" "-c" "a && b\u{1b}""#);
    }
}
