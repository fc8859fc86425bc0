@echo off
rem Drop models on this file, and each becomes a quantised file beside it, for ComfyUI.
rem
rem It runs convert_nvfp4.py, beside this file or in the folder above, with the Python named below, or
rem else with one beside this file or in the two folders above: python_embeded of a portable ComfyUI,
rem or a venv. Nothing is run that lies beside the models.
setlocal EnableExtensions DisableDelayedExpansion
rem cmd.exe would look for python in the current folder first.
set "NoDefaultCurrentDirectoryInExePath=1"

rem The Python to run, such as: set "PYTHON=D:\ComfyUI\venv\Scripts\python.exe"
set "PYTHON="

rem More options for every model, such as: set "OPTIONS=--card ada"
set "OPTIONS="

if "%~1"=="" echo Drop one or more .safetensors files on this file.
if "%~1"=="" goto end

set "SCRIPT=%~dp0convert_nvfp4.py"
if not exist "%SCRIPT%" set "SCRIPT=%~dp0..\convert_nvfp4.py"
if not exist "%SCRIPT%" echo error: convert_nvfp4.py is neither beside this file nor in the folder above
if not exist "%SCRIPT%" goto end

set "ALONE="
for %%F in ("%~dp0." "%~dp0.." "%~dp0..\..") do call :look "%%~fF"
if not defined PYTHON set "PYTHON=python"
echo Python: %PYTHON%

:next
if "%~1"=="" goto end
echo.
echo "%~nx1"
"%PYTHON%" %ALONE% "%SCRIPT%" "%~1" %OPTIONS%
if errorlevel 1 echo error: "%~nx1" was not converted; convert_nvfp4.py --doctor looks at the set-up
shift
goto next

:end
echo.
pause
exit /b

rem Look for a Python in a folder that is no drive's first, where anybody may have put one.
:look
if defined PYTHON exit /b
if "%~nx1"=="" exit /b
if exist "%~1\python_embeded\python.exe" set "PYTHON=%~1\python_embeded\python.exe"
if defined PYTHON set "ALONE=-s"
if defined PYTHON exit /b
if exist "%~1\venv\Scripts\python.exe" set "PYTHON=%~1\venv\Scripts\python.exe"
if exist "%~1\.venv\Scripts\python.exe" set "PYTHON=%~1\.venv\Scripts\python.exe"
exit /b
