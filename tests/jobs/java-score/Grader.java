/** Tries the hand-in and prints the score as the last line. */
class Grader {
    private static int points;

    private static void check(String what, boolean ok, int worth) {
        System.out.printf("%-26s %s%n", what, ok ? "passed" : "FAILED");
        points += ok ? worth : 0;
    }

    public static void main(String[] args) {
        Account account = new Account();
        account.deposit(500);
        check("deposit", account.balance() == 500, 4);
        check("withdraw too much", !account.withdraw(501) && account.balance() == 500, 3);
        check("withdraw", account.withdraw(200) && account.balance() == 300, 4);
        boolean refused = false;
        try {
            account.deposit(-1);
        } catch (IllegalArgumentException error) {
            refused = true;
        }
        check("negative deposit refused", refused, 4);
        System.out.println("home " + System.getProperty("user.home"));
        System.out.println("{\"scores\": {\"account\": " + points + "}}");
    }
}
