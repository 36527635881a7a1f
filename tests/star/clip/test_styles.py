"""Which styles are alike is judged by pictures of the same subjects, in colour and without apart."""

import torch

from star.clip.styles import StyleLikeness


def picture(red: int, green: int, blue: int, size: int) -> torch.Tensor:
    """A square of one colour on white, uint8 (3, 32, 32)."""
    pixels_3HW = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    pixels_3HW[:, 4 : 4 + size, 4 : 4 + size] = torch.tensor([red, green, blue], dtype=torch.uint8)[:, None, None]
    return pixels_3HW


def test_the_style_that_draws_subjects_most_alike_comes_first() -> None:
    likeness = StyleLikeness()
    for number, subject in enumerate(("apple", "pear", "plum")):
        size = 12 + 4 * number
        likeness.add(
            torch.stack(
                [
                    picture(200, 30, 30, size),
                    picture(190, 40, 40, size),
                    picture(30, 30, 200, size),
                    picture(20, 20, 20, size),
                    picture(60, 60, 60, size - 6),
                ]
            ),
            [{"subject": subject, "style": style} for style in ("a", "b", "c", "ink", "pencil")],
        )
    likeness.add(picture(0, 0, 0, 8)[None], [{"style": "a"}])  # no subject: passed over
    assert likeness.nearest() == {
        "a": ["b", "c"],
        "b": ["a", "c"],
        "c": ["b", "a"],
        "ink": ["pencil"],
        "pencil": ["ink"],
    }


def test_a_style_that_shares_no_subject_is_near_to_none() -> None:
    likeness = StyleLikeness()
    likeness.add(
        torch.stack([picture(200, 0, 0, 9), picture(0, 200, 0, 9)]),
        [{"subject": "apple", "style": "a"}, {"subject": "pear", "style": "b"}],
    )
    assert likeness.nearest() == {}
