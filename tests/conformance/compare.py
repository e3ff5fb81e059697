#!/usr/bin/python3
"""Judges two runs of crun's suite, crun's and coracle-oci's: compare.py RESULTS DIFFERENCES.toml

It fails where coracle-oci has fewer `ok` than crun in a place (a skip is no ok), where a test's result
differs from crun's or shows nothing and differences.toml does not say why, and where the explanation of a
difference explains nothing. The parts of `run` whose places are the matter stand in a line `again: PART…`.
Prints `conformance: N passed, N failed, N skipped` for tests/setup/suite; a result that differs for the
reason written down counts as skipped if crun's was ok, else as passed. PLACE.podman holds lines `ok NAME`
and `not ok NAME` of podman-cases.
"""

import collections
import json
import os
import sys
import tomllib


def read(path):
    with open(path) as file:
        lines = [json.loads(line) for line in file if line.startswith("{")]
    return {line["test"]: line for line in lines}


def explained(differences, place, test, crun, coracle):
    """The explanation of one difference. Places are matched by their beginning: "guest" is all of the guest."""
    for one in differences:
        places = one.get("places", [""])
        if test in one["tests"] and any(place.startswith(name) for name in places) \
                and one["crun"] == crun and one["coracle"] == coracle:
            return one
    return None


def shows_nothing(known, place, test):
    """Whether it is written why a test is not ok in a place, with crun and with us."""
    return any(test in one["tests"] and place.startswith(tuple(one.get("places", [""]))) for one in known)


def part_of(place):
    """The part of `run` that fills a place: host-root.crun.jsonl, guest-alice-systemd.crun.jsonl, guest-alice.podman."""
    machine, user = place.removesuffix(".podman").split("-")[:2]
    if place.endswith(".podman"):
        return "podman" if machine == "host" else f"{machine}_podman"
    return machine if machine == "host" else f"{machine}_{user}"


def main():
    results, explanations = sys.argv[1:3]
    with open(explanations, "rb") as file:
        document = tomllib.load(file)
    differences, nothing = document["difference"], document["nothing"]
    places = sorted(name.removesuffix(".crun.jsonl") for name in os.listdir(results) if name.endswith(".crun.jsonl"))
    counts = collections.Counter()
    used, problems, again = [], [], set()
    for place in places:
        before = len(problems)
        crun, coracle = (read(f"{results}/{place}.{name}.jsonl") for name in ("crun", "coracle"))
        oks = [sum(line["result"] == "ok" for line in run.values()) for run in (crun, coracle)]
        seconds = [sum(line["seconds"] for line in run.values()) for run in (crun, coracle)]
        print(f"{place}: {len(crun)} tests, ok: crun {oks[0]}, coracle-oci {oks[1]} "
              f"({seconds[0]:.0f} s, {seconds[1]:.0f} s)")
        if oks[1] < oks[0]:
            problems.append(f"{place}: coracle-oci has fewer ok than crun")
        if not crun or crun.keys() != coracle.keys():
            problems.append(f"{place}: not every test ran: {sorted(crun.keys() ^ coracle.keys())}")
        for test in sorted(crun.keys() & coracle.keys()):
            theirs, ours = crun[test]["result"], coracle[test]["result"]
            if theirs == ours:
                counts["passed" if ours == "ok" else "skipped"] += 1
                if ours != "ok" and not shows_nothing(nothing, place, test):
                    problems.append(f"{place}: {test}: {ours} with both, and nothing says why")
                continue
            why = explained(differences, place, test, theirs, ours)
            if why:
                used.append(id(why))
                counts["skipped" if theirs == "ok" else "passed"] += 1
                continue
            counts["failed" if theirs == "ok" else "passed"] += 1
            problems.append(f"{place}: {test}: crun {theirs}, coracle-oci {ours}, and nothing says why\n"
                            f"    {coracle[test]['output'][-600:]}")
        if len(problems) > before:
            again.add(part_of(place))
    for one in differences:
        wanted = not one.get("sometimes") and any(place.startswith(name) for place in places for name in one.get("places", [""]))
        if wanted and id(one) not in used:
            problems.append(f"differences.toml explains what is not there: {one['tests']} in {one.get('places', 'all')}")
    for name in sorted(name for name in os.listdir(results) if name.endswith(".podman")):
        with open(f"{results}/{name}") as file:
            text = file.read()
        lines = text.splitlines()
        bad = [line for line in lines if line.startswith("not ok ")]
        good = sum(line.startswith("ok ") for line in lines)
        counts["passed"] += good
        counts["failed"] += len(bad)
        print(f"{name}: {good} ok, {len(bad)} not ok")
        if bad or not good:
            problems.append(f"{name}:\n{text}")
            again.add(part_of(name))
    for problem in problems:
        print(problem)
    if again:
        print(f"again: {' '.join(sorted(again))}")
    print(f"conformance: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    sys.exit(1 if problems or not places else 0)


if __name__ == "__main__":
    main()
