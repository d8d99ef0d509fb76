#include "list.h"

#include <stdlib.h>

struct node *push(struct node *head, int value)
{
    struct node *node = malloc(sizeof *node);

    if (node == NULL)
        abort();
    node->value = value;
    node->next = head;
    return node;
}

struct node *reverse(struct node *head)
{
    struct node *done = NULL;

    while (head != NULL) {
        struct node *next = head->next;

        head->next = done;
        done = head;
        head = next;
    }
    return done;
}

int sum(const struct node *head)
{
    int total = 0;

    for (; head != NULL; head = head->next)
        total += head->value;
    return total;
}
