//! The expression language by table. Each quirk of Swarm's that is kept, and each that is not, has a named row.

use super::*;

fn verdict(text: &str, words: &[&str]) -> Verdict {
    let expr = Expr::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    expr.test(&Found::Words(words.iter().map(|word| (*word).to_owned()).collect()))
}

#[track_caller]
fn check(name: &str, text: &str, words: &[&str], expect: bool) {
    let expect = if expect { Verdict::True } else { Verdict::False };
    assert_eq!(verdict(text, words), expect, "{name}: {text} on {words:?}");
}

#[test]
fn swarm_semantics_by_table() {
    for (name, text, words, expect) in [
        ("equal", "region==eu", &["eu"][..], true),
        ("equal_is_whole", "region==eu", &["eu-west"], false),
        ("glob_star", "region==eu*", &["eu-west"], true),
        ("glob_is_anchored", "region==*eu", &["eu-west"], false),
        ("quirk_dot_in_glob_is_any", "version==1.2", &["1x2"], true),
        ("quirk_question_mark_is_optional", "name==ab?", &["a"], true),
        ("quirk_question_mark_is_not_one_character", "name==ab?", &["abc"], false),
        ("quirk_plus_repeats", "name==ab+", &["abbb"], true),
        ("quirk_brackets_in_glob_are_a_class", "name==n[12]", &["n2"], true),
        ("quirk_bar_escapes_the_anchor", "node==a|b", &["xb"], true),
        ("regex", "region==/eu|us/", &["us"], true),
        ("quirk_regex_is_unanchored", "load==/[0-2][0-5]/", &["115"], true),
        ("quirk_regex_is_unanchored_in_fractions", "load==/[0-2][0-5]/", &["3.20"], true),
        ("regex_of_the_seed", "system_overload_10min==/[0-2][0-5]/", &["9"], false),
        ("regex_is_case_sensitive", "os==/linux/", &["Linux"], false),
        ("regex_flag", "os==/(?i)linux/", &["Linux"], true),
        ("value_is_case_sensitive", "os==linux", &["Linux"], false),
        ("not_equal", "region!=eu", &["us"], true),
        ("not_equal_glob", "region!=us*", &["us-east"], false),
        ("not_equal_regex", "region!=/us/", &["eu"], true),
        ("quirk_missing_is_empty_equal", "region==eu", &[], false),
        ("quirk_missing_is_empty_not_equal", "region!=us*", &[], true),
        ("quirk_missing_is_empty_star", "region==*", &[], true),
        ("set_any", "image==redis", &["nginx", "redis"], true),
        ("set_none", "image!=redis", &["nginx", "redis"], false),
        ("set_none_of", "image!=redis", &["nginx", "alpine"], true),
        ("quirk_leading_equals_is_part_of_the_value", "region===eu", &["=eu"], true),
        ("quirk_soft_needs_the_first_place", "region==eu", &["~eu"], false),
        ("blank_in_value", "os==Debian GNU*", &["Debian GNU/Linux 12"], true),
    ] {
        check(name, text, words, expect);
    }
}

#[test]
fn swarm_grammar_by_table() {
    for (name, text, good) in [
        ("key_of_two", "ab==x", true),
        ("quirk_key_of_one_is_refused", "a==x", false),
        ("quirk_key_starts_with_letter_or_underscore", "1a==x", false),
        ("key_with_dot_dash", "com.x-y==x", true),
        ("quirk_first_double_equals_wins", "aa!=b==c", false),
        ("quirk_not_double_equals", "node!==x", false),
        ("single_equals_is_no_operator", "node=x", false),
        ("empty_value", "node==", false),
        ("quirk_two_tildes_are_refused", "region==~~eu", false),
        ("quirk_no_comma", "node==a,b", false),
        ("quirk_no_braces", "node==a{2}", false),
        ("quirk_no_at", "image==a@b", false),
        ("quirk_no_quotes", "node==\"a\"", false),
        ("lone_slash_is_refused_where_swarm_panicked", "node==/", false),
        ("bad_regex_is_refused_where_swarm_never_matched", "node==/[/", false),
        ("bad_glob_is_refused_where_swarm_never_matched", "node==a(", false),
        ("no_operator", "node", false),
    ] {
        assert_eq!(Expr::parse(text).is_ok(), good, "{name}: {text}");
    }
    assert_eq!(Expr::parse("Region==x").map(|expr| expr.key), Ok("region".to_owned()), "quirk_key_is_lower_cased");
}

#[test]
fn weights_by_table() {
    for (text, weight) in [
        ("region==eu", Weight::Hard),
        ("region==~eu", Weight::Soft),
        ("region!=~eu", Weight::Soft),
        ("region==eu~30", Weight::Scored(30)),
        ("region!=/x/~-5", Weight::Scored(-5)),
        ("cores>=8~10", Weight::Scored(10)),
        ("cores>=~8", Weight::Soft),
        ("gpu exists", Weight::Hard),
        ("gpu exists ~7", Weight::Scored(7)),
        ("zone in a|b~9", Weight::Scored(9)),
    ] {
        assert_eq!(Expr::parse(text).map(|expr| expr.weight), Ok(weight), "{text}");
    }
    assert!(Expr::parse("region==eu~101").is_err());
}

#[test]
fn extended_operators_by_table() {
    for (name, text, words, expect) in [
        ("less", "load<2.5", &["2.4"][..], true),
        ("less_is_strict", "load<2.5", &["2.5"], false),
        ("at_most", "load<=2.5", &["2.5"], true),
        ("numbers_not_text", "cores>9", &["10"], true),
        ("units", "mem.free>=4GiB", &["4294967296"], true),
        ("units_both_sides", "mem.free>4GB", &["4GiB"], true),
        ("percent", "battery>50%", &["51"], true),
        ("time", "net.rtt<20ms", &["0.01s"], true),
        ("no_number_is_false", "cores>1", &["many"], false),
        ("missing_is_false", "cores<1", &[], false),
        ("missing_is_false_for_more", "cores>=0", &[], false),
        ("version", "kernelversion v>= 5.13", &["6.1.0-13-amd64"], true),
        ("version_numbers", "kernelversion v< 5.13", &["5.9"], true),
        ("version_padding", "docker v== 1.2", &["1.2.0"], true),
        ("version_pre_release", "docker v< 1.2", &["1.2-rc1"], true),
        ("version_other", "docker v!= 1.2", &["1.3"], true),
        ("in", "region in us|eu", &["eu"], true),
        ("in_is_whole", "region in us|eu", &["eu-west"], false),
        ("notin", "region notin us|eu", &["ap"], true),
        ("notin_missing", "region notin us|eu", &[], true),
        ("exists", "gpu exists", &["a100"], true),
        ("exists_missing", "gpu exists", &[], false),
        ("match", "os=~^Debian", &["Debian 12"], true),
        ("no_match", "os!~Debian", &["Alpine"], true),
        ("match_with_swarm_operator_inside", "os=~a==b", &["a==b"], true),
    ] {
        check(name, text, words, expect);
    }
    for text in
        ["cores>", "cores>x", "cores>=1e9999", "os=~(", "os=~(a{1000}){1000}", "x in a", "zone in a||b", "kernel v< x"]
    {
        assert!(Expr::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_stale_fact_is_unknown_whatever_the_operator() {
    for text in ["load<5", "load==1", "load!=1", "load exists", "load notin 1|2"] {
        let expr = Expr::parse(text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(expr.test(&Found::Stale), Verdict::Unknown, "{text}");
    }
}

#[test]
fn only_hard_plain_equality_is_answered_from_the_index() {
    for (text, literal) in [
        ("node==a-1", Some("a-1")),
        ("node==a.1", None),
        ("node==~a", None),
        ("node!=a", None),
        ("node==a*", None),
        ("node==/a/", None),
    ] {
        let expr = Expr::parse(text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(expr.literal(), literal, "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn a86_parsing_never_panics(text in "\\PC{0,60}", words in proptest::collection::vec("\\PC{0,10}", 0..3)) {
        if let Ok(expr) = Expr::parse(&text) {
            expr.test(&Found::Words(words));
        }
    }
}
