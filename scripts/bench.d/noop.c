/* Does nothing: what it takes is the sandbox's. */
int main(void)
{
    return 0;
}
