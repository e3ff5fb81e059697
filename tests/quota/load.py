# Runs inside a limited container whose server is killed again and again: makes files, then looks at all of them.
import hashlib, os, sys

count, errors, wrong = int(sys.argv[1]), 0, 0


def content(number):
    return hashlib.sha256(str(number).encode()).digest() * (number % 200 + 1)


def path(number):
    return "/load/d%d/f%d" % (number % 20, number)


os.mkdir("/load")
held = open("/load/held", "w+b", buffering=0)
os.unlink("/load/held")
for number in range(20):
    os.mkdir("/load/d%d" % number)
print("begins", flush=True)
for number in range(count):
    try:
        with open(path(number) + ".new", "wb") as file:
            file.write(content(number))
        os.rename(path(number) + ".new", path(number))
        if number % 3 == 0:
            os.link(path(number), path(number) + ".link")
        if number % 5 == 0:
            os.unlink(path(number))
        if number % 7 == 0:
            os.symlink("nowhere", path(number) + ".symlink")
        held.write(content(number))
    except OSError as error:
        errors += 1
        print(number, error)
    if number % 10 == 0:
        print(number, flush=True)
for number in range(count):
    for name, wanted in ((path(number), number % 5 != 0), (path(number) + ".link", number % 3 == 0)):
        try:
            with open(name, "rb") as file:
                if not wanted or file.read() != content(number):
                    wrong += 1
                    print("wrong", name)
        except FileNotFoundError:
            if wanted:
                wrong += 1
                print("missing", name)
held.seek(0)
if held.read() != b"".join(content(number) for number in range(count)):
    wrong += 1
    print("the deleted file is wrong")
print("errors", errors, "wrong", wrong)
