"""The script of mutants: its list names files that are there, and a mutant is one change of a module that compiles."""

import ast

import pytest

import mutants


@pytest.mark.parametrize("name", mutants.MODULES)
def test_mutants_are_drawn_from_a_seed_and_compile(name):
    place, tests = mutants.MODULES[name]
    source = (mutants.ROOT / "semaug" / f"{place}.py").read_text()
    assert all((mutants.ROOT / "tests" / "semaug" / f"{test}.py").exists() for test in tests)
    drawn = mutants.sample(source, 4, 0)
    assert drawn == mutants.sample(source, 4, 0) != mutants.sample(source, 4, 1)
    plain = ast.unparse(ast.parse(source)).splitlines()
    for number in drawn:
        line, _, text = mutants.mutated(source, number)
        compile(text, name, "exec")
        assert text.splitlines() != plain, f"nothing changed in line {line}"
