"""Worked numbers by their names in the list that the arithmetic was designed against, and where each one is shown.

`spec/generate.py` makes a vector of those that a file can hold, so every reader has decoded them; here the generator
itself is held to the numbers on paper.
"""

from __future__ import annotations

import ast
import struct
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from vector_tensors import unpack
from vectors_valid import valid_vectors

from obm_format.codecs import sign1
from obm_format.codecs.alphas import AlphaChoice
from obm_format.kernels import ReferenceKernels

TESTS = Path(__file__).resolve().parents[1]
F = np.float32
THIRD = F(7) * (F(1) / F(3))

# name: values of the task vector, alphas as hexadecimal, first part
WORKED: dict[str, tuple[list[float], str, bytes]] = {
    "n1": ([0.5, -0.5, 0.5, -0.5], "0038", b"\x01\x01"),
    "n3": ([0.5, 0.5, -0.5, 0.5], "0038", b"\x0b"),
    "n4": ([1.0] * 27, "003c", b"\xff\x01" * 3),
    "n5": ([0.0999755859375] * 4, "662e", b"\x0f"),
    "n7": ([float(F(1e-6))] * 4, F(1e-6).tobytes().hex(), b"\x0f"),
    "n15": ([1.0, -1.0, 3.0, -3.0], "003c0042", b"\x01\x01"),
    "n16": ([float(F(2e-4))] * 5, F(2e-4).tobytes().hex(), b"\x1f"),
    "w2": ([-1.0, 0.0, 0.0, 1.0, 2.0], "0000803f0000803f", bytes([0 | 1 << 2 | 1 << 4 | 2 << 6, 3])),
    "w3": (
        [float(F(q - 2) / THIRD) for q in (0, 2, 2, 3, 7)],
        (THIRD.tobytes() + F(2).tobytes()).hex(),
        struct.pack("<H", 0 | 2 << 3 | 2 << 6 | 3 << 9 | 7 << 12),
    ),
    "w4": ([-1.0, float(F(-0.2)), 0.0, float(F(0.6)), 2.0], "0000a0400000a040", bytes([0x40, 0x85, 0x0F])),
    "w8": (
        [float(F(q - 85) / F(85)) for q in (0, 68, 85, 128, 255)],
        (F(85).tobytes() * 2).hex(),
        bytes([0, 68, 85, 128, 255]),
    ),
    "q5": ([-2.0, float(F(-4) / F(3)), -1.0], (F(3).tobytes() + F(6).tobytes()).hex(), bytes([0 | 2 << 2 | 3 << 4])),
    "q6": ([float(F(0.3))] * 3, (F(1).tobytes() + F(-0.3).tobytes()).hex(), b"\x00\x00"),
}

# Where every case of the list is shown: the vector `worked-numbers`, or file::function below tests/.
CASES = """
N1 worked-numbers codecs/test_sign1.py::test_two_by_two_has_the_bits_and_alpha_of_n1 kernels/test_numbers.py::test_n1_signs_and_sums
N2 test_compress.py::test_position_with_equal_values_and_other_bits_is_zero test_compress.py::test_unchanged_fine_tune_costs_no_payload
N3 worked-numbers codecs/test_sign1.py::test_both_zeros_are_set_bits_n3
N4 worked-numbers codecs/test_sign1.py::test_pad_bits_are_clear_and_refused_when_set_n4
N5-N6 worked-numbers codecs/test_sign1.py::test_alpha_is_rounded_to_nearest_half_n5_n6
N7-N9 worked-numbers codecs/test_sign1.py::test_coarse_half_alpha_becomes_float_n7_n8_n9
N10 codecs/test_sign1.py::test_wide_sums_do_not_overflow_n10
N11 test_taskvector.py::test_check_finite_names_tensor_and_index test_compress.py::test_not_finite_input_refused
N12 test_taskvector.py::test_difference_is_exact kernels/test_numbers.py::test_n12_bf16_difference_is_taken_in_float32
N13 test_convert.py::test_bitdelta_word test_convert.py::test_what_bitdelta_cannot_say_is_refused
N14 spec/test_numeric_cases.py::test_n14_one_bit_keeps_the_sum_and_not_the_length
N15 worked-numbers codecs/test_sign1.py::test_one_alpha_per_row_is_exact_n15
N16 worked-numbers kernels/test_numbers.py::test_n16_small_alphas_in_bf16
N17 kernels/test_numbers.py::test_n17_one_rounding_for_all_experts
D1 merge/test_dare.py::test_drop_d1_values_and_share
Q1-Q4 worked-numbers codecs/test_affine.py::test_worked_cases_q1_to_q4
Q5 worked-numbers codecs/test_affine.py::test_negative_values_have_a_zero_outside_the_codes_q5
Q6 worked-numbers codecs/test_affine.py::test_constant_is_exact_q6
Q7 codecs/test_affine.py::test_five_codes_are_really_packed_q7
R1 test_rtvq.py::test_eight_tasks_at_three_and_two_bits_take_seven_and_a_half_percent
S1 test_compress.py::test_tied_tensors_become_record_and_alias test_compress.py::test_untied_head_over_tied_backbone_is_no_alias
S2 test_taskvector.py::test_pair_grown_rows merge/test_materialize.py::test_grown_vocabulary_merges_old_rows_and_keeps_new_ones
S3 test_taskvector.py::test_pair_missing_float_refused test_compress.py::test_removed_tensors_are_recorded
S4 merge/test_materialize.py::test_added_removed_and_replaced_tensors_follow_the_routed_expert
S5 test_expert.py::test_wrong_backbone_tensor_is_refused
S6 merge/test_materialize.py::test_fine_tune_of_another_dtype_comes_back_in_it
S7 test_positions.py::test_select_nothing_refused test_compress.py::test_position_that_matches_nothing_refused
S8 test_positions.py::test_role_of_name test_positions.py::test_roles_of_real_model_class
S9 test_positions.py::test_roles_of_real_model_class
S10 spec/test_numeric_cases.py::test_s10_three_dimensions_may_have_an_alpha_per_expert
"""  # noqa: E501 - a case is one line


@pytest.fixture(scope="module")
def worked() -> dict[str, object]:
    (vector,) = [vector for vector in valid_vectors() if vector.name == "worked-numbers"]
    return {tensor.record["name"]: tensor for tensor in vector.draft.tensors}


@pytest.mark.parametrize("name", WORKED)
def test_generator_makes_the_numbers_on_paper(name: str, worked: dict[str, object]) -> None:
    values, alphas, part = WORKED[name]
    tensor = worked[name]
    assert unpack("F32", tensor.values) == values  # type: ignore[attr-defined]
    assert tensor.alphas.hex() == alphas  # type: ignore[attr-defined]
    assert next(iter(tensor.parts.values())) == part  # type: ignore[attr-defined]


def test_every_worked_tensor_is_on_paper(worked: dict[str, object]) -> None:
    assert worked.keys() == WORKED.keys()


def test_n16_small_shifts_are_swallowed_by_bf16(worked: dict[str, object]) -> None:
    tensor = worked["n16"]
    before, after = (unpack("BF16", data) for data in (tensor.base, tensor.rebuilt))  # type: ignore[attr-defined]
    changes = [a - b for a, b in zip(after, before, strict=True)]
    assert changes == [0.0, 2.44140625e-4, 2.44140625e-4, 0.0, 1.983642578125e-4]


def test_n14_one_bit_keeps_the_sum_and_not_the_length() -> None:
    d = np.array([[3, -1, 0, 0]], np.float32)
    encoded = sign1.encode(d, AlphaChoice(), rows=1, planes=1, kernels=ReferenceKernels())
    alpha = float(np.frombuffer(encoded.alphas, "<f2")[0])
    assert alpha == 1.0
    decoded = np.where(d >= 0, alpha, -alpha)
    assert np.abs(decoded).sum() == np.abs(d).sum() == 4.0
    assert (decoded**2).sum() == 4.0
    assert (d**2).sum() == 10.0
    assert ((decoded - d) ** 2).sum() / (d**2).sum() == 0.6


def test_s10_three_dimensions_may_have_an_alpha_per_expert() -> None:
    d = np.array([[[1, -1], [1, 1]], [[-3, 3], [3, -3]], [[0.5, 0.5], [-0.5, 0.5]]], np.float32)
    choice = AlphaChoice()
    per_expert = [
        np.frombuffer(sign1.encode(one, choice, rows=2, planes=1, kernels=ReferenceKernels()).alphas, "<f2")[0]
        for one in d
    ]
    rows = AlphaChoice(granularity=type(choice.granularity)("row"))
    encoded = sign1.encode(d.reshape(3, 4), rows, rows=3, planes=1, kernels=ReferenceKernels())
    assert np.frombuffer(encoded.alphas, "<f2").tolist() == per_expert == [1.0, 3.0, 0.5]


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("case", CASES.strip().splitlines(), ids=lambda case: case.split()[0])
def test_case_is_shown(case: str) -> None:
    _, *shown = case.split()
    assert shown
    for where in (where for where in shown if where != "worked-numbers"):
        file, function = where.split("::")
        assert function in functions_of(file), where
