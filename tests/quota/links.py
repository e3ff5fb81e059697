# Runs inside a container: files of several names that lose some of them. One line for each story; the limited filesystem must
# say what overlayfs alone says.
import errno, os, subprocess, threading

os.mkdir("/links")
os.chdir("/links")


def make(name):
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644))


def links(name):
    return os.stat(name).st_nlink


def text(name, value):
    with open(name, "w") as file:
        file.write(value)


def read(name):
    with open(name) as file:
        return file.read()


# The lookups between linking and removing are what makes overlayfs share its inode.
STORIES = [
    "make a; link a b; unlink a; links b",
    "make a; link a b; links b; unlink a; links b; links a",
    "mknod a; link a b; links b; unlink a; links b; link b a; links b; unlink b; links a",
    "make a; link a b; link a c; links b; links c; unlink a; links b; links c; unlink c; links b; unlink b",
    "make a; link a b; links b; make x; rename x a; links b; links a",
    "make a; link a b; links b; make x; rename x b; links a; links b",
    "make a; link a b; links b; rename a c; unlink b; links c; link c d; links d; unlink c; links d",
    "make a; link a b; links b; mkdir d; rename a d/a; unlink d/a; links b; rmdir d; links b",
    # As dpkg replaces a file and git makes an object.
    "text a old; link a a.tmp; links a.tmp; text a.new new; rename a.new a; read a; read a.tmp; unlink a.tmp; read a",
    "text tmp one; link tmp 1; links 1; unlink tmp; text tmp two; link tmp 2; links 2; unlink tmp; read 1; read 2; links 1",
    # Of the image, and of one that was copied up.
    "read /etc/debian_version; link /etc/debian_version v; links v; unlink /etc/debian_version; links v; rename v /etc/debian_version; "
    "links /etc/debian_version",
]
WORDS = {"make": make, "links": links, "text": text, "read": read, **{name: getattr(os, name) for name in
         ["link", "unlink", "rename", "mkdir", "rmdir", "mknod"]}}

for story in STORIES:
    results = []
    for step in story.split("; "):
        word, *arguments = step.split(" ")
        try:
            results.append(WORDS[word](*arguments))
        except OSError as error:
            results.append(errno.errorcode[error.errno])
    print(story, "->", results)
    subprocess.run(["/bin/rm", "-rf", "/links"])
    os.mkdir("/links")
    os.chdir("/links")


def many(number):
    """Makes a file under a passing name and one that stays, again and again, as many do at once in one directory."""
    for turn in range(100):
        passing, lasting = f"passing{number}", f"lasting{number}-{turn}"
        text(passing, lasting)
        os.link(passing, lasting)
        links(lasting)
        os.unlink(passing)
        if read(lasting) != lasting:
            raise ValueError(lasting)


failures = []
threading.excepthook = lambda failed: failures.append(failed.exc_value)
threads = [threading.Thread(target=many, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("at once", failures, len(os.listdir()))
