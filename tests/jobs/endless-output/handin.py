step = 0
while step >= 0:
    print("debug: step", step)
    step += 1
