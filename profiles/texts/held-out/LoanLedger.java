package org.example.library;

import java.time.LocalDate;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.stream.Collectors;

/** Who has borrowed which book, until when, and what a late return costs. */
public final class LoanLedger {

    /** One copy in the hands of one reader. */
    public record Loan(String copyId, String reader, LocalDate due, int renewals) {
        Loan renewed(int days) {
            return new Loan(copyId, reader, due.plusDays(days), renewals + 1);
        }

        boolean isLate(LocalDate today) {
            return today.isAfter(due);
        }
    }

    /** Thrown where the rules of the library do not allow what was asked for. */
    public static final class RefusedException extends RuntimeException {
        private static final long serialVersionUID = 1L;

        RefusedException(String message) {
            super(message);
        }
    }

    private static final int LOAN_DAYS = 28;
    private static final int MAX_RENEWALS = 2;
    private static final int MAX_LOANS = 10;
    private static final long CENTS_PER_DAY = 25;

    private final Map<String, Loan> loansByCopy = new HashMap<>();

    public Loan borrow(String copyId, String reader, LocalDate today) {
        Loan current = loansByCopy.get(copyId);
        if (current != null) {
            throw new RefusedException(copyId + " is lent until " + current.due());
        }
        List<Loan> loans = loansOf(reader);
        if (loans.size() >= MAX_LOANS) {
            throw new RefusedException(reader + " already has " + MAX_LOANS + " books");
        }
        if (loans.stream().anyMatch(loan -> loan.isLate(today))) {
            throw new RefusedException(reader + " has to return a late book first");
        }
        Loan loan = new Loan(copyId, reader, today.plusDays(LOAN_DAYS), 0);
        loansByCopy.put(copyId, loan);
        return loan;
    }

    public Loan renew(String copyId, LocalDate today) {
        Loan loan = find(copyId).orElseThrow(() -> new RefusedException(copyId + " is not lent"));
        if (loan.isLate(today) || loan.renewals() >= MAX_RENEWALS) {
            throw new RefusedException(copyId + " cannot be renewed");
        }
        Loan renewed = loan.renewed(LOAN_DAYS);
        loansByCopy.put(copyId, renewed);
        return renewed;
    }

    /** Takes a copy back and returns the fee in cents, 0 where it is in time. */
    public long giveBack(String copyId, LocalDate today) {
        Loan loan = loansByCopy.remove(copyId);
        if (loan == null) {
            throw new RefusedException(copyId + " is not lent");
        }
        long daysLate = Math.max(0, ChronoUnit.DAYS.between(loan.due(), today));
        return daysLate * CENTS_PER_DAY;
    }

    public Optional<Loan> find(String copyId) {
        return Optional.ofNullable(loansByCopy.get(copyId));
    }

    public List<Loan> loansOf(String reader) {
        return loansByCopy.values().stream()
                .filter(loan -> loan.reader().equals(reader))
                .sorted(Comparator.comparing(Loan::due).thenComparing(Loan::copyId))
                .collect(Collectors.toCollection(ArrayList::new));
    }
}
