struct node {
    int value;
    struct node *next;
};

struct node *push(struct node *head, int value);
struct node *reverse(struct node *head);
int sum(const struct node *head);
