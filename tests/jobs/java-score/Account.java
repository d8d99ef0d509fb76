/** An account that never goes below zero. */
class Account {
    private long cents;

    void deposit(long amount) {
        if (amount <= 0) {
            throw new IllegalArgumentException("deposit of " + amount);
        }
        cents += amount;
    }

    boolean withdraw(long amount) {
        if (amount <= 0 || amount > cents) {
            return false;
        }
        cents -= amount;
        return true;
    }

    long balance() {
        return cents;
    }
}
