"""Runs the hand-in's tests and prints the score as the last line."""
import getpass
import json
import sys
import unittest

import handin


class Roman(unittest.TestCase):
    def test_subtractive(self):
        self.assertEqual(handin.roman(1994), "MCMXCIV")

    def test_additive(self):
        self.assertEqual(handin.roman(2038), "MMXXXVIII")


class Palindrome(unittest.TestCase):
    def test_yes(self):
        self.assertTrue(handin.is_palindrome("A man, a plan, a canal: Panama"))

    def test_no(self):
        self.assertFalse(handin.is_palindrome("Panama"))


scores = {}
for case in Roman, Palindrome:
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(case)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite)
    failed = len(result.failures) + len(result.errors)
    scores[case.__name__.lower()] = 5 * (result.testsRun - failed)
print("graded as", getpass.getuser())
print(json.dumps({"scores": scores}))
