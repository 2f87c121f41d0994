import unittest

from tally import collapse, expand


class Ranges(unittest.TestCase):
    def test_a_range_has_both_its_ends(self):
        self.assertEqual(expand("1-3,5"), [1, 2, 3, 5])

    def test_blanks_do_not_matter(self):
        self.assertEqual(expand(" 7 , 9-10"), [7, 9, 10])

    def test_what_is_collapsed_expands_to_the_same(self):
        for numbers in ([1], [1, 2], [1, 3], [4, 5, 6, 9]):
            self.assertEqual(expand(collapse(numbers)), numbers)


if __name__ == "__main__":
    unittest.main()
