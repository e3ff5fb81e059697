//! What templates give, by table; the expected texts are what Docker's own client prints.

use serde_json::{Value, json};

use super::*;

fn row() -> Value {
    json!({
        "ID": "abc", "Names": "web", "Labels": "a=b,com.x.role=db", "Size": 12, "Running": true, "Health": null,
        "State": {"Status": "exited", "ExitCode": 3},
        "Config": {"Labels": {"k": "v"}, "Cmd": ["sh", "-c", "x"], "Env": []},
        "NetworkSettings": {"Ports": {"53/udp": null, "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]}},
    })
}

fn render(template: &str) -> Result<String, String> {
    let mut out = Vec::new();
    let format = Format::parse(template).map_err(|error| error.to_string())?;
    format.headed(&[("ID", "CONTAINER ID")]).write(&mut out, &[row()]).map_err(|error| error.to_string())?;
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn templates() {
    for (template, expect) in [
        ("{{.Names}}", "web"),
        ("{{ .State.Status }}:{{.State.ExitCode}}", "exited:3"),
        ("{{json .Config.Cmd}}", r#"["sh","-c","x"]"#),
        ("{{.Config.Cmd}} {{.State}}", "[sh -c x] map[ExitCode:3 Status:exited]"),
        ("{{join .Config.Cmd \" \"}}", "sh -c x"),
        ("{{len .Config.Cmd}}{{len .Names}}", "33"),
        ("{{index .Config.Cmd 1}} {{index .Config.Labels \"k\"}}{{index .Config.Labels \"none\"}}", "-c v"),
        ("{{.Config.Labels.none}}", "<no value>"),
        ("{{range .Config.Cmd}}{{.}},{{end}}", "sh,-c,x,"),
        ("{{range $i, $e := .Config.Cmd}}{{$i}}={{$e}} {{end}}", "0=sh 1=-c 2=x "),
        ("{{range .Config.Env}}x{{else}}empty{{end}}", "empty"),
        (
            "{{range $p, $c := .NetworkSettings.Ports}}{{$p}}>{{with $c}}{{(index . 0).HostPort}}{{end}} {{end}}",
            "53/udp> 80/tcp>8080 ",
        ),
        ("{{range.Config.Cmd}}{{.}}{{end}}", "sh-cx"),
        (
            "{{range $p, $c := .NetworkSettings.Ports}}{{if $c}}{{$p}} -> {{(index $c 0).HostPort}}{{end}}{{end}}",
            "80/tcp -> 8080",
        ),
        ("{{(index (index .NetworkSettings.Ports \"80/tcp\") 0).HostPort}}", "8080"),
        ("{{if .Running}}up{{else}}down{{end}}", "up"),
        ("{{if eq .State.Status \"running\"}}r{{else if eq .State.ExitCode 3 4}}three{{else}}o{{end}}", "three"),
        ("{{if and .Running (not .Health)}}plain{{end}}", "plain"),
        ("{{.Names | upper | printf \"%s-%05d|%-4s|%5.2f\" }}", "!"),
        ("{{printf \"%s-%05d|%-4s|%q\" .Names .Size \"x\" .ID}}", "web-00012|x   |\"abc\""),
        ("{{$x := .Names}}{{range .Config.Cmd}}{{$x}}{{$.ID}}{{end}}", "webabcwebabcwebabc"),
        ("{{.Label \"com.x.role\"}}", "db"),
        ("a\\t{{upper .Names}}\\n{{title \"a b\"}}", "a\tWEB\nA B"),
        ("{{- /* nothing */ -}}  x {{- \"}}\" -}} y", "x}}y"),
        ("{{println .Names .Size}}", "web 12\n"),
        ("{{lt .Size 13}}{{ge .Size 13}}{{ne .ID \"abc\"}}", "truefalsefalse"),
        ("{{slice .ID 0 2}}{{truncate .ID 1}}{{split \"a,b\" \",\"}}{{pad .ID 1 1}}", "aba[a b] abc "),
        ("{{with .Health}}{{.}}{{else}}none{{end}}", "none"),
        ("json", "!"),
        ("tablet {{.ID}}", "tablet abc"),
    ] {
        match expect {
            "!" if template == "json" => assert_eq!(render(template).unwrap(), format!("{}\n", row())),
            "!" => assert!(render(template).is_err(), "{template}"),
            expect => assert_eq!(render(template).as_deref(), Ok(format!("{expect}\n").as_str()), "{template}"),
        }
    }
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    for (template, part) in [
        ("{{.Nmaes}}", "no field \"Nmaes\""),
        ("{{.State.Wat}}", "no field \"State.Wat\""),
        ("{{.Health.Status}}", "no field \"Health.Status\""),
        ("{{html .ID}}", "the function \"html\" is not implemented"),
        ("{{define \"x\"}}{{end}}", "{{define}} is not implemented"),
        ("{{range .Config.Cmd}}{{break}}{{end}}", "{{break}} is not implemented"),
        ("{{.ID", "{{ without }}"),
        ("{{}}", "nothing between"),
        ("{{if .ID}}x", "{{if}} without {{end}}"),
        ("{{end}}", "{{end}} without a beginning"),
        ("{{(.ID}}", "( without )"),
        ("{{.ID)}}", ") without ("),
        ("{{.ID | }}", "a value is missing"),
        ("{{$x}}", "$x is not declared"),
        ("{{upper .Size}}", "upper: needs a text"),
        ("{{eq .ID 1}}", "cannot be compared"),
        ("{{index .Config.Cmd 9}}", "out of range"),
        ("{{range .Names}}{{end}}", "needs a list"),
        ("{{printf \"%y\" .ID}}", "the verb %y is not implemented"),
        ("{{.ID .Names}}", "only a function"),
        ("{{.ID ; 1}}", "unexpected ';'"),
        ("table", "needs a template"),
    ] {
        let error = render(template).expect_err(template);
        assert!(error.contains(part), "{template}: {error}");
    }
    let deep = "(".repeat(1000);
    assert!(render(&format!("{{{{{deep}.ID}}}}")).unwrap_err().contains("deep"));
    assert!(render(&"{{if .ID}}".repeat(1000)).unwrap_err().contains("deep"));
    assert_eq!(Format::parse(&"x".repeat(100_000)).unwrap_err(), FormatError::TooLong);
}

#[test]
fn tables_have_headings_and_no_control_bytes() {
    assert_eq!(render("table {{.ID}}\\t{{.CreatedAt}}").unwrap_err(), "--format: there is no field \"CreatedAt\" here");
    assert_eq!(
        render("table {{.ID}}\\t{{upper .Names}}\\t{{.Label \"com.x.role\"}}").unwrap(),
        "CONTAINER ID   NAMES     role\nabc            WEB       db\n"
    );
    let mut out = Vec::new();
    let format = Format::listing(None, "{{.ID}}\t{{.LocalVolumes}}").unwrap();
    format.write(&mut out, &[json!({"ID": "\u{1b}[31mred", "LocalVolumes": 2})]).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), "ID         LOCAL VOLUMES\n\u{fffd}[31mred   2\n");
}
